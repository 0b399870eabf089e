"""MindCube tinybench (MLL-Lab/MindCube): several views of one place, 1050 questions; column MindCube of Table 1.

File `data/raw/MindCube_tinybench.jsonl`: id (prefix among_, around_, aroundnew_ or rotation_), question with its options
inside ("… A. x B. y"), images (2 to 4 paths relative to `data/`), gt_answer (a letter). A copy with 1040 rows circulates; the
count check rejects it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, image_paths, one_file
from fgrpo.files import read_jsonl
from fgrpo.options import letter_index, split_options
from fgrpo.types import Sample


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "MindCube_tinybench.jsonl", "mindcube")
    data = path.parent.parent
    for row in read_jsonl(path, torn_tail_ok=False):
        missing = [key for key in ("id", "question", "images", "gt_answer") if row.get(key) in (None, "", [])]
        if missing:
            yield Drop(f"no {', '.join(missing)}")
            continue
        try:
            question, choices = split_options(str(row["question"]))
            images = image_paths(data, row["images"])
        except ValueError as error:
            yield Drop(str(error))
            continue
        gold = letter_index(str(row["gt_answer"]), choices)
        if gold is None:
            yield Drop("the answer is no letter of the options in the question")
            continue
        setting = str(row["id"]).split("_", 1)[0].replace("aroundnew", "around")
        meta = {"setting": setting, "category": row.get("category")}
        yield Sample(f"mindcube/tinybench/{row['id']}", images, question, choices, choices[gold], meta=meta)


BENCHMARK = Benchmark(
    "mindcube",
    "MindCube",
    "MindCube",
    "MLL-Lab/MindCube",
    _read,
    known_as=("mindcube_tiny", "MindCubeBench_tiny_raw_qa"),
)
