"""A finished cell's files, and whether they are all there: a cell is done if its status says so and its results can be read."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fgrpo.errors import UserError
from ops.lab import runner
from ops.lab.cells import CELLS, Job

ROW, QUESTIONS, CURVES = "cell.json", "questions.parquet", "curves.parquet"
TABLES = (QUESTIONS, CURVES)
DAMAGED = "damaged"
AGAIN = "the cell runs again at the next call of make lab"


def is_done(job: Job) -> bool:
    """Whether the job is done as it is declared now, and a cell's results can be read."""
    return runner.read(job.folder).is_done(job) and not damage(job)


def damage(job: Job) -> str:
    """Which result of a finished cell cannot be read; "" if all can, and for jobs that cells share."""
    if not job.name.startswith(f"{CELLS}/"):
        return ""
    for name in (ROW, *TABLES):
        if not (job.folder / name).is_file():
            return f"{name} is missing; {AGAIN}"
    try:
        row(job)
        pq.read_table(job.folder / CURVES)
        answers = pq.read_table(job.folder / QUESTIONS)
    except (UserError, OSError, pa.ArrowException) as error:
        return f"its results cannot be read ({type(error).__name__}); {AGAIN}"
    return "" if answers.num_rows else f"{QUESTIONS} has no answers; {AGAIN}"


def row(job: Job) -> dict[str, Any]:
    """The figures that a finished cell wrote. UserError: the file is damaged."""
    path = job.folder / ROW
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, then rerun the cell") from error
