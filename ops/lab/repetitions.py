"""Further runs of a finished cell: none replaces another, and comparisons find pairs among them.

Equal commands give equal figures on equal arithmetic only (`ops.lab.arithmetic`). Where an arm is added on another machine, its partners
run again there (`--repeat`), so that both start from one SFT checkpoint. A cell's folder holds its first run; the others lie in
`repeated/<start>/` of that folder. Means and tables are over first runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fgrpo.runs import held, write_json
from ops.lab import runner, stored
from ops.lab.cells import Job, Plan

REPEATED = "repeated"
REPEATS = "repeats"  # column of a row: the cell of which it is a further run


def others(job: Job) -> list[Job]:
    """The finished runs of a cell that are not in its folder, in the order of their starts, as jobs with folders of their own."""
    places = sorted(path.parent for path in (job.folder / REPEATED).glob(f"*/{runner.STATUS}"))
    found = [replace(job, folder=place) for place in places]
    return [one for one in found if runner.read(one.folder).is_done(job) and not stored.damage(one)]


def name(cell: str, status: runner.Status) -> str:
    """A further run's name: its cell's, and when it started."""
    return f"{cell}@{status.started}"


def place(job: Job, status: runner.Status) -> Job:
    """The cell's job with the folder in which a further run lies."""
    return replace(job, folder=job.folder / REPEATED / status.started.replace(":", "-"))


def named(table: pa.Table, cell: str) -> pa.Table:
    """A cell's answers or curves under another name; a table without rows has no name."""
    if not table.num_rows:
        return table
    return table.set_column(
        table.schema.get_field_index("cell"), "cell", pa.array([cell] * table.num_rows, pa.string())
    )


def rows(plan: Plan) -> Iterator[tuple[dict[str, Any], Job]]:
    """The row of every further run and its job; the row's cell is the run's name."""
    for cell, job in plan.of_cell.items():
        for one in others(job):
            status = runner.read(one.folder)
            cost = {"seconds": status.seconds, "cpu_seconds": status.cpu_seconds, "started": status.started}
            known = {**stored.row(one), **vars(cell), **cost, "state": runner.DONE}
            yield {**known, "cell": name(cell.name, status), REPEATS: cell.name}, one


def make_room(job: Job) -> None:
    """Move a finished run out of its cell's folder, so that the cell runs once more; an unfinished further run comes back to go on.

    Raises:
        UserError: another process works on the cell.
    """
    with held(job.folder):
        here = runner.read_unlocked(job.folder)
        if here.is_done(job) and not stored.damage(job):
            _move(job, place(job, here))
            if _unfinished(job).folder.is_dir():
                _move(_unfinished(job), job)


def settle(job: Job) -> None:
    """Put the first finished run into the cell's folder. An unfinished one that was there is kept aside, and listed as an attempt.

    Raises:
        UserError: another process works on the cell.
    """
    finished = others(job)
    if not finished:
        return
    with held(job.folder):
        here, first = runner.read_unlocked(job.folder), runner.read(finished[0].folder)
        is_done = here.is_done(job) and not stored.damage(job)
        if is_done and here.started <= first.started:
            return
        past = () if is_done else here.history(job, stored.damage(job))
        _move(job, place(job, here) if is_done else _unfinished(job))
        _move(finished[0], job)
        known = {one["started"] for one in first.attempts}
        attempts = (*first.attempts, *(one for one in past if one["started"] not in known))
        write_json(job.folder / runner.STATUS, vars(replace(first, attempts=attempts)))


def _unfinished(job: Job) -> Job:
    return replace(job, folder=job.folder / REPEATED / "unfinished")


def _move(job: Job, to: Job) -> None:
    """Move a run's files, its status last: it says that the rest is there."""
    paths = [path for path in job.folder.iterdir() if path.name != REPEATED]
    to.folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(paths, key=lambda path: path.name == runner.STATUS):
        shutil.move(path, to.folder / path.name)
    if job.folder.parent.name == REPEATED:
        job.folder.rmdir()
