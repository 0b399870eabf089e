"""Further runs of a finished cell: none replaces another, and comparisons find pairs among them.

Equal commands give equal figures only on equal versions and equal arithmetic (`ops.lab.arithmetic`). Where an arm is added on another
machine, its partners run again there (`--repeat`), so that both start from one SFT checkpoint. A run that is over makes room by a
rename of its folder, from seed-0 to seed-0@<start>. The run that started first gives the cell its figures, wherever it lies.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pyarrow as pa

from fgrpo.errors import UserError
from fgrpo.runs import held
from ops.lab import runner, stored
from ops.lab.cells import Job

AT = "@"
REPEATS = "repeats"  # column of a row: the cell of which it is a further run


def runs(job: Job) -> list[Job]:
    """The finished runs of a cell in the order of their starts, as jobs with folders of their own.

    Raises:
        UserError: a run's status is damaged.
    """
    places = [job.folder, *sorted(job.folder.parent.glob(f"{job.folder.name}{AT}*"))]
    finished = [one for place in places if stored.is_done(one := replace(job, folder=place))]
    by_start: dict[str, Job] = {}
    for one in finished:
        by_start.setdefault(runner.read(one.folder).started, one)
    return [by_start[start] for start in sorted(by_start)]


def first(job: Job) -> Job:
    """The first finished run; the job itself if there is none."""
    return next(iter(runs(job)), job)


def status(job: Job) -> runner.Status:
    """How a cell stands: as its first finished run, whose attempts an unfinished further run is added to."""
    found = first(job)
    known, here = runner.read(found.folder), runner.read(job.folder)
    if found == job or here.state == runner.WAITING or stored.is_done(job):
        return known
    if here.state == runner.RUNNING:
        here = replace(here, reason="it has not ended yet")
    *_, last = here.history(job, stored.damage(job))
    if any(one["started"] == last["started"] for one in known.attempts):  # published before
        return known
    return replace(known, attempts=(*known.attempts, {**last, "reason": f"a further run: {last['reason']}"}))


def name(cell: str, of_run: runner.Status) -> str:
    """A further run's name: its cell's, and when it started."""
    return f"{cell}{AT}{of_run.started}"


def aside(job: Job, of_run: runner.Status) -> Job:
    """The cell's job with the folder of a further run."""
    start = of_run.started.replace(":", "-")
    return replace(job, folder=job.folder.with_name(f"{job.folder.name}{AT}{start}"))


def make_room(job: Job) -> None:
    """Rename the folder of a finished run, so that the cell runs once more. A repetition that was stopped stays, to go on.

    Raises:
        UserError: another process works on the cell, or the other folder exists.
    """
    with held(job.folder):
        if not stored.is_done(job):
            return
        place = aside(job, runner.read_unlocked(job.folder)).folder
        if place.exists():
            raise UserError(f"{place} exists already; move it away, then repeat the cell")
        os.rename(job.folder, place)


def named(table: pa.Table, cell: str) -> pa.Table:
    """A cell's answers or curves under another name; a table without rows has no name."""
    if not table.num_rows:
        return table
    names = pa.array([cell] * table.num_rows, pa.string())
    return table.set_column(table.schema.get_field_index("cell"), "cell", names)
