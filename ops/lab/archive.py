"""What a lab has run as files of the repository: docs/laboratory/<name>/, from which a lab goes on in another checkout.

`publish` writes what `make lab` has run; `restore` puts it back before the next cell starts, so no finished cell runs twice and no
attempt is forgotten. A cell is restored only if it is still the one that is declared (`Job.key`). The files that cells share (data,
SFT) are not kept: a cell that is not finished makes them again, to the same bits on the same versions and arithmetic. Cells that start
from different SFT weights are no pair (`ops.lab.start_weights`).

    cells.jsonl        per started cell: its job's key, state, cost and attempts, and its row of figures if it is done
    cells.parquet      a row per declared cell, and per further run, which names its cell in the column `repeats`
    repeated.jsonl     per further run of a finished cell, as cells.jsonl; its answers and curves have the run's name
    shared.jsonl       per started job that cells share: its state, cost and attempts
    questions.parquet  every scored answer of the finished cells
    curves.parquet     their training curves
    declared.json      which commit declared the lab (`ops.lab.declaration.seal`)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.runs import held, write_json
from ops.lab import arithmetic, declaration, repetitions, results, runner, standing, start_weights, stored, versions
from ops.lab.cells import Job, Plan
from ops.lab.declaration import SEAL

FOLDER = Path("docs/laboratory")
ELSEWHERE = "its files are not here: they were made in another checkout"
ENTRIES, REPEATED, SHARED = "cells.jsonl", "repeated.jsonl", "shared.jsonl"


@dataclass(frozen=True)
class Entry:
    """A started cell: its name, the status of its job, and its row of cells.parquet, empty if it is not done."""

    cell: str
    status: runner.Status
    row: Mapping[str, Any]


def entries(folder: Path) -> dict[str, Entry]:
    """The archived cells by name; none without an archive.

    Raises:
        UserError: a line of the archive is damaged.
    """
    return {entry.cell: entry for entry in _entries(folder / ENTRIES)}


def run_for(folder: Path, cell: str, computed: str | None) -> Entry | None:
    """The published run of a cell that was made by this arithmetic, otherwise its first run; None if there is none with figures.

    Raises:
        UserError: a line of the archive is damaged.
    """
    runs = [one for one in (*_entries(folder / ENTRIES), *_entries(folder / REPEATED)) if one.cell == cell and one.row]
    same = (one for one in runs if computed and one.row.get(arithmetic.COLUMN) == computed)
    return next(same, next(iter(runs), None))


def _entries(path: Path) -> list[Entry]:
    return [Entry(line["cell"], status, dict(line.get("row") or {})) for line, status in _lines(path, "cell")]


def shared(plan: Plan, folder: Path) -> dict[str, runner.Status]:
    """{job: status} of what cells share and what was started, here or, if not here, where the archive is from.

    Raises:
        UserError: a line of the archive is damaged.
    """
    here = standing.shared(plan)
    archived = {line["job"]: status for line, status in _lines(folder / SHARED, "job")}
    found = {}
    for job in plan.jobs:
        status = here.get(job.name)
        if status is None or not status.started:  # it has at most attempts that the archive lists too
            status = archived.get(job.name, status)
        if status is not None:
            found[job.name] = status
    return found


def published(plan: Plan, folder: Path) -> dict[str, runner.Status]:
    """{job: status} of the archived jobs that are done as they are declared now: cells, and what they share.

    Raises:
        UserError: a line of the archive is damaged.
    """
    found = {line["job"]: status for line, status in _lines(folder / SHARED, "job")}
    of_cells = entries(folder)
    found |= {job.name: of_cells[cell.name].status for cell, job in plan.of_cell.items() if cell.name in of_cells}
    return {job.name: found[job.name] for job in plan.jobs if job.name in found and found[job.name].is_done(job)}


def _lines(path: Path, name: str) -> list[tuple[dict[str, Any], runner.Status]]:
    found = []
    for number, line in enumerate(read_jsonl(path) if path.is_file() else (), start=1):
        try:
            status = runner.Status(**{**line["status"], "attempts": tuple(line["status"]["attempts"])})
            found.append(({**line, name: str(line[name])}, status))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}, is no {name} of a lab ({error!r}); restore the file from git"
            ) from error
    return found


def publish(plan: Plan, top: Path, folder: Path) -> int:
    """Write what has run in `top` to `folder`, all files or none; returns the number of finished cells.

    Raises:
        UserError: a published cell that is still declared would vanish.
    """
    restore(plan, top, folder)
    rows = {row["cell"]: row for row in results.rows_of(plan)}
    statuses = {cell.name: repetitions.status(job) for cell, job in plan.of_cell.items()}
    done = {name: statuses[name] for name, row in rows.items() if row["state"] == runner.DONE}
    _refuse_loss(plan, done, top, folder)
    started = {name: status for name, status in statuses.items() if status.started or status.attempts}
    if not started:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder.parent) as made:
        draft = Path(made)
        further = results.further_rows(plan)
        results.write_all(plan, list(rows.values()), further, draft)
        if further:
            write_jsonl(draft / REPEATED, (_line_of_further(row, run) for row, run in further))
        if common := shared(plan, folder):
            write_jsonl(draft / SHARED, ({"job": name, "status": vars(status)} for name, status in common.items()))
        if (top / SEAL).is_file():
            shutil.copyfile(top / SEAL, draft / SEAL)
        lines = (_line(name, status, rows[name]) for name, status in started.items())
        write_jsonl(draft / ENTRIES, lines)
        # the lists of runs last: they say that the rest is there
        for name in sorted(
            (path.name for path in draft.iterdir()), key=lambda name: (name == ENTRIES, name == REPEATED)
        ):
            os.replace(draft / name, folder / name)
        if not further:
            (folder / REPEATED).unlink(missing_ok=True)
    return len(done)


def _line_of_further(row: Mapping[str, Any], run: Job) -> dict[str, Any]:
    cell = row[repetitions.REPEATS]
    figures = {key: value for key, value in sorted(row.items()) if key != repetitions.REPEATS} | {"cell": cell}
    return {"cell": cell, "status": vars(runner.read(run.folder)), "row": figures}


def _line(name: str, status: runner.Status, row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {}
    if row["state"] == runner.DONE:
        figures = dict(sorted(row.items()))
    elif row["state"] == stored.DAMAGED:
        status = replace(status, state=stored.DAMAGED, reason=row["reason"])
    return {"cell": name, "status": vars(status), "row": figures}


def _refuse_loss(plan: Plan, done: Mapping[str, runner.Status], top: Path, folder: Path) -> None:
    """UserError if a published cell that is still declared is not done here, or done as another job under one declaration."""
    jobs = {cell.name: job for cell, job in plan.of_cell.items()}
    seals = [declaration.sealed(place) for place in (top, folder)]
    is_same = None in seals or len({declaration.valid(seal) for seal in seals if seal is not None}) == 1
    lost = [
        name
        for name, entry in entries(folder).items()
        if name in jobs and entry.row and (name not in done or (is_same and done[name].key != entry.status.key))
    ]
    lost += [
        repetitions.name(entry.cell, entry.status)
        for entry in _entries(folder / REPEATED)
        if is_same and entry.cell in jobs and _run_of(entry, jobs[entry.cell]) is None
    ]
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UserError(
            f"publishing would delete {len(lost)} finished cells from {folder}: {shown}. {top} does not hold them as they are declared. "
            "A cell's key holds the path of its results, so publish with the RUNS they were published from (default: runs). If the "
            f"declaration was changed, run them again first; to give results up, delete their lines of {folder / ENTRIES} yourself"
        )


def restore(plan: Plan, top: Path, folder: Path) -> list[str]:
    """Put archived runs that `top` does not hold into it; returns the names of the cells whose folders they fill.

    Where something else was started in a cell's folder, the archived run is put beside it (`ops.lab.repetitions`). The attempts of all
    other archived jobs are added to those of their folders.

    Raises:
        UserError: the archive is damaged.
    """
    found = entries(folder)
    if found and (folder / SEAL).is_file() and not (top / SEAL).is_file():
        top.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / SEAL, top / SEAL)
    by_name = {job.name: job for job in plan.jobs}
    for line, status in _lines(folder / SHARED, "job"):
        if line["job"] in by_name:
            _remember(by_name[line["job"]], status)
    jobs = {cell.name: job for cell, job in plan.of_cell.items()}
    known = {name: entry for name, entry in found.items() if name in jobs}
    further = {repetitions.name(one.cell, one.status): one for one in _entries(folder / REPEATED) if one.cell in jobs}
    absent = {
        name: one
        for name, one in (known | further).items()
        if one.status.is_done(jobs[one.cell]) and _run_of(one, jobs[one.cell]) is None
    }
    tables = {name: _table(folder / name) for name in stored.TABLES} if absent else {}
    wanted = [name for name, one in known.items() if name in absent and _is_free(jobs[name])]
    for name, entry in known.items():
        if name not in absent:
            _remember(_run_of(entry, jobs[name]) or jobs[name], entry.status)
    for name, entry in absent.items():
        job = jobs[entry.cell]
        _put(job if name in wanted else repetitions.aside(job, entry.status), entry, name, tables, folder)
    return wanted


def _is_free(job: Job) -> bool:
    """Whether an archived cell may be put into its folder: nothing started here and no repetition waits, or its results are damaged."""
    status = runner.read(job.folder)
    is_unused = status.state == runner.WAITING and not repetitions.runs(job)
    return is_unused or (status.is_done(job) and bool(stored.damage(job)))


def _run_of(entry: Entry, job: Job) -> Job | None:
    """The finished run of a cell here that an archived one is."""
    same = (one for one in repetitions.runs(job) if runner.read(one.folder).started == entry.status.started)
    return next(same, None)


def _put(job: Job, entry: Entry, name: str, tables: Mapping[str, pa.Table], folder: Path) -> None:
    """Write an archived run into the job's folder; `name` is the run's in the archive's tables."""
    if name not in pc.unique(tables[stored.QUESTIONS]["cell"]).to_pylist():
        raise UserError(f"{folder / stored.QUESTIONS} has no answers of {name}; restore it from git")
    job.folder.mkdir(parents=True, exist_ok=True)
    for file, table in tables.items():
        found = repetitions.named(table.filter(pc.equal(table["cell"], name)), entry.cell)
        results.write_table(job.folder / file, found)
    past = runner.read(job.folder).history(job, stored.damage(job))
    status = replace(entry.status, attempts=(*entry.status.attempts, *_unknown(past, entry.status)))
    write_json(job.folder / stored.ROW, dict(entry.row))
    write_json(job.folder / runner.STATUS, vars(status))  # last: it says that the rest is there


def _remember(job: Job, archived: runner.Status) -> None:
    """Add archived attempts that a job's status here does not list; the archived end is one of them, unless the job was done at once."""
    if archived.state == runner.RUNNING:
        archived = replace(archived, reason="it had not ended when the results were published")
    past = archived.history(job, ELSEWHERE) if archived.attempts or archived.state != runner.DONE else ()
    if not past:
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(job.folder))
        except UserError:  # another process works on it; the next call adds them
            return
        now = runner.read_unlocked(job.folder)
        if new := _unknown(past, now):
            cost = archived if now.state == runner.WAITING and archived.key == job.key else now
            attempts, key = (*new, *now.attempts), now.key or job.key
            status = replace(now, key=key, seconds=cost.seconds, cpu_seconds=cost.cpu_seconds, attempts=attempts)
            write_json(job.folder / runner.STATUS, vars(status))


def _unknown(past: Sequence[dict[str, Any]], status: runner.Status) -> tuple[dict[str, Any], ...]:
    """The attempts that a status does not know; an attempt is known by when it started."""
    known = {one["started"] for one in status.attempts} | ({status.started} if status.started else set())
    return tuple(one for one in past if one["started"] not in known)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is missing or damaged ({error}); restore it from git") from error


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's results alone, without what differs between two runs of one cell: cost, dates, state and commit."""
    where = (*standing.COLUMNS, repetitions.REPEATS)
    return {k: value for k, value in row.items() if k not in where and not versions.is_column(k)}


def differences(row: Mapping[str, Any], entry: Entry) -> list[str]:
    """Figures in which a cell that was run again differs from the archived one, as "<figure>: <now>, published <then>"."""
    now, then = (json.loads(json.dumps(figures_of(one))) for one in (row, entry.row))
    return [
        f"{key}: {now.get(key)!r}, published {then.get(key)!r}"
        for key in dict.fromkeys((*now, *then))
        if now.get(key) != then.get(key) and not (key == start_weights.COLUMN and None in (now.get(key), then.get(key)))
    ]
