"""SAT, training split (array/SAT, about 172K questions, MIT): images are stored as bytes in the rows of one parquet file.

Columns: image_bytes (list of one or two), question, answers, correct_answer (text), question_type. One row group of the real file
is 5.2 GB, so rows are streamed, and each image is written to a file once. The real file has the answers in a fixed order; here
the seed and the record's id determine the order. The file is sorted by question_type ("other" fills the first 127,405 rows), so
`data.sources.sat.pool` should not truncate it. No boxes. Appendix A.3.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_curation.source import (
    Context,
    Drop,
    Source,
    convert,
    image_bytes_size,
    numbered_rows,
    parquet_files,
    text_of,
)
from fgrpo.types import Sample

COLUMNS = ("image_bytes", "question", "answers", "correct_answer", "question_type")
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def _files(folder: Path) -> list[Path]:
    """Files of the training split: those with "train" in their path, else all that are not named after another split."""
    paths = parquet_files(folder)
    train = [p for p in paths if "train" in p.relative_to(folder).as_posix().lower()]
    return train or [p for p in paths if not any(split in p.name.lower() for split in ("test", "val"))]


def _image_files(cells: Any, stem: str, images: Path) -> tuple[str, ...]:
    """Write the images of one row below `images`, unless they are there already; returns their paths."""
    if not isinstance(cells, list) or not cells:
        raise Drop("no_image")
    encoded = []
    for cell in cells:
        data = cell.get("bytes") if isinstance(cell, dict) else cell  # an image struct of the hub, or plain bytes
        if not isinstance(data, bytes) or not data:
            raise Drop("no_image")
        kind = image_bytes_size(data)[2]
        if kind not in SUFFIXES:
            raise Drop("corrupt_image")
        encoded.append((data, SUFFIXES[kind]))
    paths = []
    for k, (data, suffix) in enumerate(encoded):
        path = images / f"{stem}_{k}.{suffix}"
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(data)
            partial.replace(path)
        paths.append(str(path))
    return tuple(paths)


def _read(context: Context) -> Iterator[Sample]:
    def sample(record_id: str, row: dict[str, Any]) -> Sample:
        question, answer = text_of(row, "question"), text_of(row, "correct_answer")
        answers = [str(a).strip() for a in row["answers"] or () if str(a).strip()]
        if len(answers) < 2 or len(set(answers)) != len(answers):
            raise Drop("fewer_than_two_answers")
        if answer not in answers:
            raise Drop("answer_not_among_options")
        n = int(record_id.rsplit("/", 1)[1])
        paths = _image_files(row["image_bytes"], f"{n // 1000:04d}/{n}", context.images)
        random.Random(f"{context.seed}/{record_id}/choices").shuffle(answers)
        return Sample(record_id, paths, question, tuple(answers), answer, None, {"type": row["question_type"]})

    return convert(numbered_rows(_files(context.folder), COLUMNS, "sat/train"), sample, context.tally)


SOURCE = Source("sat", "SAT", "array/SAT (MIT)", _files, _read)
