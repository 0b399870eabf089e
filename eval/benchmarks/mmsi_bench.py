"""MMSI-Bench (RunsenXu/MMSI-Bench): 1000 questions on two or more images each; beside the paper's seven.

File `MMSI_Bench.parquet`: id, images (list of files), question_type (11 kinds), question with its options inside ("…\\nOptions:
A: x, B: y, C: z, D: w"), answer (a letter), thought, difficulty. The "Enclose the option's letter within ``" of other harnesses
is in their prompts, not in the data. Names of kinds occur with a hyphen and with an en dash; `meta["task"]` has the dash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, one_file, parquet_rows, save_image
from fgrpo.options import letter_index, split_options
from fgrpo.types import Sample

LEAST_IMAGES = 2
COLUMNS = ("id", "images", "question_type", "question", "answer")
_OPTIONS_WORD = re.compile(r"\s*options\s*:\s*$", re.IGNORECASE)


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "MMSI_Bench.parquet", "mmsi_bench")
    for n, row in enumerate(parquet_rows([path], COLUMNS, "mmsi_bench")):
        try:
            stem, choices = split_options(str(row["question"] or ""))
            question = _OPTIONS_WORD.sub("", stem)
            gold = letter_index(str(row["answer"] or ""), choices)
            if not question or not choices:
                raise ValueError("no question with options")
            if gold is None:
                raise ValueError("the answer is no letter of the options in the question")
            held = row["images"] or []
            if len(held) < LEAST_IMAGES:
                raise ValueError(f"{len(held)} images, fewer than two")
            images = tuple(save_image(data, cache, f"{n:05d}-{k}") for k, data in enumerate(held))
        except ValueError as error:  # UnclearOptions is one
            yield Drop(str(error))
            continue
        meta = {"task": str(row["question_type"]).replace(".-", ".–"), "difficulty": row.get("difficulty")}
        sample_id = n if row["id"] is None else row["id"]
        yield Sample(f"mmsi_bench/test/{sample_id}", images, question, choices, choices[gold], meta=meta)


BENCHMARK = Benchmark(
    "mmsi_bench",
    "MMSI-Bench",
    "MMSI-Bench",
    "RunsenXu/MMSI-Bench",
    _read,
    known_as=("MMSIBench", "MMSIBench_wo_circular"),
)
