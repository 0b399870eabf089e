"""TreeBench (HaochenWang/TreeBench): one .tsv with base64 images, options in columns and as text, and boxes in pixels."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

from miniworld.write.studio import Studio, Writer, letter, lettered

CATEGORIES = {
    "hrel": "Reasoning/Perspective Transform",
    "vrel": "Reasoning/Ordering",
    "depth": "Reasoning/Contact and Occlusion",
    "nearer": "Reasoning/Comparison",
}
LETTERS = "ABCD"
HEAD = ("index", "image", "question", *LETTERS, "multi-choice options", "answer", "category", "l2-category")


def _write(folder: Path, count: int, studio: Studio) -> None:
    folder.mkdir(parents=True)
    with (folder / "TreeBench.tsv").open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, [*HEAD, "target_instances"], delimiter="\t", lineterminator="\n")
        table.writeheader()
        for n, q, rng in studio.questions(tuple(CATEGORIES), count):
            things = [thing for name in q.targets if (thing := q.scenes[0].by_name(name)) is not None]
            table.writerow(
                {
                    "index": n,
                    "image": base64.b64encode(studio.png(q.scenes[0], rng)).decode(),
                    "question": q.text,
                    **dict(zip(LETTERS, q.choices, strict=False)),
                    "multi-choice options": lettered(q.choices, between="\n"),
                    "answer": letter(q),
                    "category": CATEGORIES[q.family],
                    "l2-category": q.family,
                    "target_instances": str([[int(v) for v in thing.box] for thing in things]),
                }
            )


WRITER = Writer("bench/TreeBench", "bench", _write)
