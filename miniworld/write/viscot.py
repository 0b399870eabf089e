"""VisCoT (deepcs233/Visual-CoT): `metadata/<set>_cot_train.jsonl`, free-form answers, boxes in original pixels.

Keys: question, answer, full_answer, image (file name only), width, height, bboxs, dataset, split. Images are in
`cot_images/<set>/`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from miniworld import questions as qs
from miniworld.write.studio import Studio, Writer, jsonl, save

SETS = {"count": "openimages", "nearer": "vsr", "hrel": "gqa"}  # family -> the set with the most similar questions


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows: dict[str, list[dict[str, object]]] = defaultdict(list)
    for n, q, rng in studio.questions(tuple(SETS), count):
        kind, name = SETS[q.family], f"{n:07d}.jpg"
        save(folder / "cot_images" / kind / name, studio.jpeg(q.scenes[0], rng))
        width, height = q.scenes[0].extent
        things = [thing for target in q.targets if (thing := q.scenes[0].by_name(target)) is not None]
        rows[kind].append(
            {
                "question": q.text,
                "answer": q.answer,
                "full_answer": qs.conclusion(q, q.answer),
                "image": name,
                "width": width,
                "height": height,
                "bboxs": [list(t.box) for t in things],
                "dataset": kind,
                "split": "train",
            }
        )
    for kind, lines in rows.items():
        jsonl(folder / "metadata" / f"{kind}_cot_train.jsonl", lines)


WRITER = Writer("train/VisCoT", "train", _write)
