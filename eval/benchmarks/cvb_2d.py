"""CV-Bench 2D (nyu-visionx/CV-Bench): counting and relations, 1438 questions; column CVB-2D of Table 1.

File `test_2d.parquet`: idx, type, task, image, question, choices (list), answer "(A)". The paper's figure is the plain mean over
questions, not the mean of per-source means that other harnesses print, so `source` stays in `meta` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, one_file, parquet_rows, save_image
from fgrpo.options import letter_index
from fgrpo.types import Sample


def read_half(folder: Path, cache: Path, half: str) -> Iterator[Sample | Drop]:
    """Rows of one half of CV-Bench, "2D" or "3D"."""
    name = f"cvb_{half.lower()}"
    path = one_file(folder, f"test_{half.lower()}.parquet", name)
    for n, row in enumerate(parquet_rows([path], ["type", "task", "image", "question", "choices", "answer"], name)):
        choices = tuple(str(c).strip() for c in row["choices"] or ())
        gold = letter_index(str(row["answer"]), choices)
        if row["type"] != half:
            yield Drop(f"type {row['type']}")
        elif gold is None:
            yield Drop("the answer is no letter of the choices")
        else:
            try:
                image = save_image(row["image"], cache, f"{n:05d}")
            except ValueError as error:
                yield Drop(str(error))
                continue
            meta = {"task": row["task"], "idx": row.get("idx"), "source": row.get("source")}
            yield Sample(f"{name}/test/{n}", (image,), str(row["question"]).strip(), choices, choices[gold], meta=meta)


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    return read_half(folder, cache, "2D")


BENCHMARK = Benchmark(
    "cvb_2d", "CVB-2D", "CV-Bench", "nyu-visionx/CV-Bench", _read, known_as=("cv_bench_2d", "CV-Bench-2D")
)
