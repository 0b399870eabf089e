"""MindCube tinybench (MLL-Lab/MindCube): two views of the same things, with the options inside the question.

File `data/raw/MindCube_tinybench.jsonl`; image paths are relative to `data/`. The miniature world has one kind of view change, so
the settings among, around and rotation in the ids are only names here.
"""

from __future__ import annotations

from pathlib import Path

from miniworld.write.studio import Studio, Writer, jsonl, letter, lettered, save

SETTINGS = ("among", "around", "aroundnew", "rotation")


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows = []
    for n, q, rng in studio.questions(("view",), count):
        setting = SETTINGS[n % len(SETTINGS)]
        names = [f"other_all_image/{setting}/scene_{n:04d}/view_{k}.png" for k in range(len(q.scenes))]
        for name, scene in zip(names, q.scenes, strict=True):
            save(folder / "data" / name, studio.png(scene, rng))
        rows.append(
            {
                "id": f"{setting}_{n:04d}",
                "category": ["perspective", "relation"],
                "type": setting,
                "meta_info": [[list(scene.things[0].center) for scene in q.scenes]],
                "question": f"{q.text} {lettered(q.choices)}",
                "images": names,
                "gt_answer": letter(q),
            }
        )
    jsonl(folder / "data" / "raw" / "MindCube_tinybench.jsonl", rows)


WRITER = Writer("bench/MindCube", "bench", _write)
