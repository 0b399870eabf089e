"""What a lab has run as files of the repository: docs/laboratory/<name>/, from which a lab goes on in another checkout.

`publish` writes what `make lab` has run; `restore` puts it back before the next cell starts, so no finished cell runs twice and no
attempt is forgotten. A cell is restored only if it is still the one that is declared (`Job.key`). The files that cells share (data,
SFT) are not kept: a cell that is not finished makes them again, to the same bits on the same versions and processor. Cells that start
from different SFT weights are no pair (`ops.lab.start_weights`).

    cells.jsonl        per started cell: its job's key, state, cost and attempts, and its row of figures if it is done
    cells.parquet      a row per declared cell
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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.runs import held, write_json
from ops.lab import declaration, repetitions, results, runner, standing, start_weights, stored, versions
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
    """{job: status} of the archived jobs that are done as they are declared now: cells, and what they share."""
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
    statuses = {cell.name: runner.read(job.folder) for cell, job in plan.of_cell.items()}
    done = {cell.name: job for cell, job in plan.of_cell.items() if rows[cell.name]["state"] == runner.DONE}
    _refuse_loss(plan, {name: statuses[name] for name in done}, top, folder)
    started = {name: status for name, status in statuses.items() if status.started or status.attempts}
    if not started:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder.parent) as made:
        draft = Path(made)
        further = list(repetitions.rows(plan))
        for name in stored.TABLES:
            tables = [pq.read_table(job.folder / name) for job in done.values()]
            tables += [repetitions.named(pq.read_table(job.folder / name), row["cell"]) for row, job in further]
            results.write_joined(draft / name, tables)
        results.write_rows(draft / results.CELLS, [*rows.values(), *(row for row, _ in further)])
        if further:
            again = [(row[repetitions.REPEATS], runner.read(job.folder), stored.row(job)) for row, job in further]
            write_jsonl(
                draft / REPEATED, ({"cell": c, "status": vars(s), "row": dict(sorted(r.items()))} for c, s, r in again)
            )
        if common := shared(plan, folder):
            write_jsonl(draft / SHARED, ({"job": name, "status": vars(status)} for name, status in common.items()))
        if (top / SEAL).is_file():
            shutil.copyfile(top / SEAL, draft / SEAL)
        lines = (_line(name, status, rows[name]) for name, status in started.items())
        write_jsonl(draft / ENTRIES, lines)
        names = sorted((path.name for path in draft.iterdir()), key=lambda name: name == ENTRIES)
        for name in names:  # the entries last: they say that the rest is there
            os.replace(draft / name, folder / name)
    return len(done)


def _line(name: str, status: runner.Status, row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {}
    if row["state"] == runner.DONE:
        figures = dict(sorted(row.items()))
    elif row["state"] == stored.DAMAGED:
        status = replace(status, state=stored.DAMAGED, reason=row["reason"])
    return {"cell": name, "status": vars(status), "row": figures}


def _refuse_loss(plan: Plan, done: Mapping[str, runner.Status], top: Path, folder: Path) -> None:
    """UserError if a published cell that is still declared is not done here, or done as another job under one declaration."""
    declared = {cell.name for cell in plan.of_cell}
    seals = [declaration.sealed(place) for place in (top, folder)]
    is_same = None in seals or len({declaration.valid(seal) for seal in seals if seal is not None}) == 1
    lost = [
        name
        for name, entry in entries(folder).items()
        if name in declared and entry.row and (name not in done or (is_same and done[name].key != entry.status.key))
    ]
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UserError(
            f"publishing would delete {len(lost)} finished cells from {folder}: {shown}. {top} does not hold them as they are declared. "
            "A cell's key holds the path of its results, so publish with the RUNS they were published from (default: runs). If the "
            f"declaration was changed, run them again first; to give results up, delete their lines of {folder / ENTRIES} yourself"
        )


def restore(plan: Plan, top: Path, folder: Path) -> list[str]:
    """Put archived cells that are not done in `top` and have not failed or stopped there into their folders; returns their names.

    An archived run of a cell of which another is done in `top` becomes a further run there, or that one does if it started later. The
    attempts of all other archived jobs are added to those of their folders.

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
    _settle(jobs.values())
    known = {name: entry for name, entry in found.items() if name in jobs}
    wanted = {name: one for name, one in known.items() if one.status.is_done(jobs[name]) and _is_free(jobs[name])}
    further = {name: one for name, one in known.items() if name not in wanted and _is_other_run(one, jobs[name])}
    further |= {
        repetitions.name(one.cell, one.status): one
        for one in _entries(folder / REPEATED)
        if one.cell in jobs and one.status.is_done(jobs[one.cell]) and not _is_here(one, jobs[one.cell])
    }
    tables = {name: _table(folder / name) for name in stored.TABLES} if wanted or further else {}
    for name, entry in known.items():
        if name in wanted:
            _put(jobs[name], entry, name, tables, folder)
        elif name not in further and not _is_aside(entry, jobs[name]):
            _remember(jobs[name], entry.status)
    for name, entry in further.items():
        _put(repetitions.place(jobs[entry.cell], entry.status), entry, name, tables, folder)
    _settle(jobs[name] for name in {entry.cell: None for entry in further.values()})
    return list(wanted)


def _settle(jobs: Iterable[Job]) -> None:
    for job in jobs:
        with suppress(UserError):  # another process works on it; the next call does it
            repetitions.settle(job)


def _is_free(job: Job) -> bool:
    """Whether an archived cell may be put here: nothing started here, or its results are damaged."""
    status = runner.read(job.folder)
    return status.state == runner.WAITING or (status.is_done(job) and bool(stored.damage(job)))


def _is_here(entry: Entry, job: Job) -> bool:
    """Whether an archived run is one of those in the cell's folder."""
    return runner.read(job.folder).started == entry.status.started or _is_aside(entry, job)


def _is_aside(entry: Entry, job: Job) -> bool:
    """Whether an archived run is a further run of the cell here."""
    return entry.status.started in {runner.read(one.folder).started for one in repetitions.others(job)}


def _is_other_run(entry: Entry, job: Job) -> bool:
    """Whether an archived cell is done and its folder holds another finished run of it."""
    return entry.status.is_done(job) and stored.is_done(job) and not _is_here(entry, job)


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
