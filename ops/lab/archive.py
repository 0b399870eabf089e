"""Finished cells of a lab as files of the repository: docs/laboratory/<name>/, from which a lab goes on in another checkout.

`publish` writes what `make lab` has finished; `restore` puts it back before the next cell starts, so no finished cell runs twice.
A cell is restored only if it is still the one that is declared (`Job.key`). What cells share (data, SFT) is not kept: a cell that
is not finished makes it again, to the same bits on the same versions.

    cells.jsonl        per cell: its job's key, state and cost, and its row of figures
    questions.parquet  every scored answer of these cells
    curves.parquet     their training curves
    declared.json      which commit declared the lab (`ops.lab.declaration.seal`)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.runs import write_json
from ops.lab import results, runner
from ops.lab.cells import Plan
from ops.lab.declaration import SEAL

FOLDER = Path("docs/laboratory")
ENTRIES = "cells.jsonl"
_TABLES = (results.QUESTIONS, results.CURVES)


@dataclass(frozen=True)
class Entry:
    """A finished cell: its name, the status of its job, and its row of cells.parquet."""

    cell: str
    status: runner.Status
    row: Mapping[str, Any]


def entries(folder: Path) -> dict[str, Entry]:
    """The archived cells by name; none without an archive.

    Raises:
        UserError: a line of the archive is damaged.
    """
    path = folder / ENTRIES
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            status = runner.Status(**{**line["status"], "attempts": tuple(line["status"]["attempts"])})
            found[str(line["cell"])] = Entry(str(line["cell"]), status, dict(line["row"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}, is no cell of a lab ({error!r}); restore the file from git"
            ) from error
    return found


def publish(plan: Plan, top: Path, folder: Path) -> int:
    """Write the finished cells of `top` to `folder`; returns how many.

    Cells that only the archive has stay in it, if they are still the declared ones.
    """
    restore(plan, top, folder)
    rows = {row["cell"]: row for row in results.rows_of(plan)}
    done = {cell.name: job for cell, job in plan.of_cell.items() if runner.read(job.folder).is_done(job)}
    if not done:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"cell": name, "status": vars(runner.read(job.folder)), "row": dict(sorted(rows[name].items()))}
        for name, job in done.items()
    ]
    for name in _TABLES:
        results.write_joined(folder / name, [pq.read_table(job.folder / name) for job in done.values()])
    write_jsonl(folder / ENTRIES, lines)
    if (top / SEAL).is_file():
        shutil.copyfile(top / SEAL, folder / SEAL)
    return len(done)


def restore(plan: Plan, top: Path, folder: Path) -> list[str]:
    """Put archived cells that have not started in `top` into their folders; returns their names.

    Raises:
        UserError: the archive is damaged.
    """
    found = entries(folder)
    wanted = {
        cell.name: job
        for cell, job in plan.of_cell.items()
        if cell.name in found
        and found[cell.name].status.is_done(job)
        and runner.read(job.folder).state == runner.WAITING
    }
    if not wanted:
        return []
    tables = {name: _table(folder / name) for name in _TABLES}
    if (folder / SEAL).is_file() and not (top / SEAL).is_file():
        top.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / SEAL, top / SEAL)
    for name, job in wanted.items():
        if name not in pc.unique(tables[results.QUESTIONS]["cell"]).to_pylist():
            raise UserError(f"{folder / results.QUESTIONS} has no answers of {name}; restore it from git")
        job.folder.mkdir(parents=True, exist_ok=True)
        for file, table in tables.items():
            results.write_table(job.folder / file, table.filter(pc.equal(table["cell"], name)))
        write_json(job.folder / results.ROW, dict(found[name].row))
        write_json(job.folder / runner.STATUS, vars(found[name].status))  # last: it says that the rest is there
    return list(wanted)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is missing or damaged ({error}); restore it from git") from error


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's results alone, without what differs between two runs of one cell: cost, dates, state and commit."""
    return {key: value for key, value in row.items() if key not in results.STANDING and key not in ("commit", "dirty")}


def differences(row: Mapping[str, Any], entry: Entry) -> list[str]:
    """Figures in which a cell that was run again differs from the archived one, as "<figure>: <now>, published <then>"."""
    now, then = (json.loads(json.dumps(figures_of(one))) for one in (row, entry.row))
    return [
        f"{key}: {now.get(key)!r}, published {then.get(key)!r}"
        for key in dict.fromkeys((*now, *then))
        if now.get(key) != then.get(key)
    ]
