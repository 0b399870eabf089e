"""MMVP (MMVP/MMVP): `Questions.csv` and `MMVP Images/<Index>.jpg`; rows (1,2), (3,4), … are near-identical pairs.

The two images of a pair have the same question and opposite answers. There are `count` questions, hence half as many pairs.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from miniworld.write.studio import Studio, Writer, lettered, save

FAMILIES = ("hrel", "vrel")
COLUMNS = ("Index", "Question", "Options", "Correct Answer")


def _write(folder: Path, count: int, studio: Studio) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "Questions.csv").open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow(COLUMNS)
        for n, pair, rng in studio.pairs(FAMILIES, (count + 1) // 2):
            jitter = rng.getrandbits(64)  # the same jitter for both images, so that they differ in nothing else
            for k, q in enumerate(pair):
                index = 2 * n + k + 1
                if index > count:
                    break
                save(folder / "MMVP Images" / f"{index}.jpg", studio.jpeg(q.scenes[0], random.Random(jitter)))
                correct = f"({chr(97 + q.choices.index(q.answer))})"
                table.writerow([index, q.text, lettered(q.choices, "({lower}) {choice}"), correct])


WRITER = Writer("bench/MMVP", "bench", _write)
