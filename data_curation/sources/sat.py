"""SAT, training split (array/SAT, about 172K questions, MIT): pictures lie as bytes inside the rows of one parquet file.

Columns image_bytes (list of one or two), question, answers, correct_answer (a text), question_type. One row group of the
real file is 5.2 GB, so rows are streamed, and each picture is written out once. The real file puts the answers in a fixed
order: here the order is drawn from the seed and the record's id. It is ordered by question_type ("other" fills the first
127,405 rows), so `data.sources.sat.pool` should not cut it. No boxes. Appendix A.3.
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
    parquet_files,
    parquet_rows,
    picture_bytes_size,
    text_of,
)
from fgrpo.types import Sample

COLUMNS = ("image_bytes", "question", "answers", "correct_answer", "question_type")
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def _files(folder: Path) -> list[Path]:
    """The training split: files named so, or all that are not named after another split."""
    found = parquet_files(folder)
    named = [p for p in found if "train" in p.relative_to(folder).as_posix().lower()]
    return named or [p for p in found if not any(split in p.name.lower() for split in ("test", "val"))]


def _records(context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    n = 0
    for path in _files(context.folder):
        for row in parquet_rows(path, COLUMNS):
            yield f"sat/train/{n}", row
            n += 1


def _pictures(cells: Any, stem: str, images: Path) -> tuple[str, ...]:
    """Writes the pictures of one row below `images`, unless they are there already with that size."""
    if not isinstance(cells, list) or not cells:
        raise Drop("no_image")
    found = []
    for cell in cells:
        data = cell.get("bytes") if isinstance(cell, dict) else cell  # the hub's image struct, or plain bytes
        if not isinstance(data, bytes) or not data:
            raise Drop("no_image")
        kind = picture_bytes_size(data)[2]
        if kind not in SUFFIXES:
            raise Drop("corrupt_image")
        found.append((data, SUFFIXES[kind]))
    paths = []
    for k, (data, suffix) in enumerate(found):
        path = images / f"{stem}_{k}.{suffix}"
        if not path.exists() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(path.name + ".part")
            aside.write_bytes(data)
            aside.replace(path)
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
        pictures = _pictures(row["image_bytes"], f"{n // 1000:04d}/{n}", context.images)
        random.Random(f"{context.seed}/{record_id}/choices").shuffle(answers)
        return Sample(record_id, pictures, question, tuple(answers), answer, None, {"type": row["question_type"]})

    return convert(_records(context), sample, context.tally)


SOURCE = Source("sat", "SAT", "array/SAT (MIT)", _files, _read)
