"""Results of a lab: one row per declared cell, the answers behind it, and its training curves, as parquet files.

A finished cell writes cell.json, questions.parquet and curves.parquet into its own folder. `collect` joins them into
runs/lab/<name>/{cells,questions,curves}.parquet, with a row for every declared cell, whatever became of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval import models
from eval.curves import training
from eval.measured import stored as measured_answers
from eval.measures import measures
from eval.results import Result, one
from fgrpo.config import load as load_config
from fgrpo.errors import UserError
from fgrpo.files import part_of_process
from fgrpo.runs import MANIFEST, write_json
from fgrpo.sealed import read_sealed
from ops.clean_checkpoints import clean
from ops.lab import arithmetic, repetitions, runner, standing, start_weights, stored, versions
from ops.lab.cells import POLICY_PROBES, PROBE, Cell, Job, Plan
from ops.lab.declaration import PROBES, Lab
from ops.lab.runner import DONE
from ops.lab.stored import CURVES as CURVES
from ops.lab.stored import QUESTIONS as QUESTIONS
from ops.lab.stored import ROW as ROW

CELLS = "cells.parquet"
Row = dict[str, Any]
_CURVES = ("accuracy", "inconsistency", "format", "kl")  # of metrics.jsonl, besides constraints and multipliers


def finish_cell(lab: Lab, cell: Cell, job: Job, computed: str | None = None) -> Row:
    """Write a finished cell's figures into its folder, and delete its RL checkpoints; returns its row.

    Args:
        computed: the fingerprint of this machine's arithmetic (`ops.lab.arithmetic`).

    Raises:
        UserError: the evaluation, the log of training, the forced statements or the probes are missing or damaged.
    """
    of, runs = lab.of(cell.method), job.folder / "runs"
    config = load_config(lab.preset, of if models.rl_run(of) else "fgrpo")
    result = one(of, config, runs)
    steps = training(config, runs).get(of, []) if models.rl_run(of) else []
    row: Row = {"cell": cell.name, **vars(cell), **_of_evaluation(result), **_of_training(steps), **_of_probe(job)}
    measured = measured_answers(result.path) if _runs(job, POLICY_PROBES) else {}
    row |= {
        **versions.columns(read_sealed(result.path / MANIFEST)),
        versions.CPU: versions.cpu(),
        arithmetic.COLUMN: computed,
        **start_weights.of_cell(job),
    }
    write_rows(job.folder / QUESTIONS, [{"cell": cell.name, **answer} for answer in _answers(result, measured)])
    write_rows(job.folder / CURVES, [{"cell": cell.name, **point} for point in _points(steps)])
    write_json(job.folder / ROW, row)
    clean(config, runs)
    return row


def _of_evaluation(result: Result) -> Row:
    """{"sampled/accuracy": the average that the tables print, …}."""
    out: Row = {}
    for kind in result.kinds():
        for measure in measures():
            cell = result.cell(kind, "average", measure.metric)
            out[f"{kind}/{measure.metric}"] = None if cell is None else cell["value"]
    return out


def _of_training(steps: Sequence[Mapping[str, Any]]) -> Row:
    """Steps, the λ that weighed the last step (its update is not in it), and the share of steps in which a violated constraint's λ was at its bound."""
    if not steps:
        return {"steps": None}
    out: Row = {"steps": steps[-1]["step"]}
    for key in dict.fromkeys(key for line in steps for key in line):
        if key.startswith("lambda/"):
            out[key] = steps[-1].get(key)
        if key.startswith("constraint/") and key.endswith("/saturated"):
            known = [float(line[key]) for line in steps if line.get(key) is not None]
            out[f"saturated/{key.split('/')[1]}"] = sum(known) / len(known) if known else None
    return out


def _runs(job: Job, what: str) -> bool:
    """Whether a word of the job's commands ends with `what`: a module, or a file that it writes."""
    return any(word.endswith(what) for command in job.commands for word in command)


def _of_probe(job: Job) -> Row:
    path = job.folder / PROBE
    if not _runs(job, PROBE):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {f"forced/{name}": float(found[name]) for name in ("follows_statement", "true", "direct")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}); delete it, then rerun the cell") from error


def _answers(result: Result, measured: Mapping[str, Mapping[str, float | None]]) -> Iterable[Row]:
    """One row per scored answer: where it belongs, and its value of every metric (None: it has none).

    Args:
        measured: {answer's id: {reward: value}} of what was measured on the policy.
    """
    every = measures()
    rewards = list(dict.fromkeys(reward for values in measured.values() for reward in values))
    for record in result.records():
        meta = record.meta
        yield {
            "kind": str(meta["kind"]),
            "benchmark": record.benchmark,
            "group": str(meta["group"]),
            "id": record.id,
            **{measure.metric: measure.value_of(record) for measure in every},
            **{f"{PROBES}{reward}": measured.get(record.id, {}).get(reward) for reward in rewards},
        }


def _points(steps: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    for line in steps:
        for key, value in line.items():
            wanted = (
                key in _CURVES or key.startswith("lambda/") or (key.startswith("constraint/") and key.endswith("/mean"))
            )
            if wanted and value is not None:
                yield {"step": int(line["step"]), "key": key, "value": float(value)}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a parquet file; a row without a column has no value there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]))


def write_table(path: Path, table: Any) -> None:
    """Write a parquet file atomically."""
    part = part_of_process(path)  # shards may collect at once
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def write_joined(path: Path, tables: Iterable[Any]) -> None:
    """Write the rows of several tables as one parquet file; the tables may differ in columns, and be none."""
    filled = [table for table in tables if table.num_rows]
    empty = pa.table({"cell": pa.array([], pa.string())})
    write_table(path, pa.concat_tables(filled, promote_options="permissive") if filled else empty)


def collect(lab: Lab, plan: Plan, top: Path) -> list[Row]:
    """Join the results of the cells and of their further runs into the lab's parquet files; returns the rows of all declared cells, in order.

    A cell that is not done has its state and the reason in place of figures. So has a cell that was done under another declaration,
    and one whose results are damaged.
    """
    rows = rows_of(plan)
    top.mkdir(parents=True, exist_ok=True)
    write_all(plan, rows, further_rows(plan), top)
    return rows


def write_all(plan: Plan, rows: Sequence[Row], further: Sequence[tuple[Row, Job]], folder: Path) -> None:
    """Write cells, answers and curves of the finished runs; those of further runs have the run's name."""
    jobs = {cell.name: job for cell, job in plan.of_cell.items()}
    done = [(row["cell"], repetitions.first(jobs[row["cell"]])) for row in rows if row["state"] == DONE]
    done += [(row["cell"], run) for row, run in further]
    for name in stored.TABLES:
        tables = (repetitions.named(pq.read_table(run.folder / name), cell) for cell, run in done)
        write_joined(folder / name, tables)
    write_rows(folder / CELLS, [*rows, *(row for row, _ in further)])


def rows_of(plan: Plan) -> list[Row]:
    """The rows of all declared cells, in order, each of its first run.

    What a cell's status does not know (its chain's cost, if it was restored) is its row's.
    """
    rows = []
    for cell, job in plan.of_cell.items():
        row: Row = {"cell": cell.name, **vars(cell), **standing.of_cell(job, plan)}
        if row["state"] == DONE:
            kept = _kept(repetitions.first(job))
            row = {**kept, **{key: kept.get(key) if value is None else value for key, value in row.items()}}
        rows.append(row)
    return rows


def further_rows(plan: Plan) -> list[tuple[Row, Job]]:
    """The row of every further run, and the run; the row's cell is the run's name."""
    found = []
    for cell, job in plan.of_cell.items():
        for run in repetitions.runs(job)[1:]:
            status = runner.read(run.folder)
            known: Row = {
                "state": DONE,
                "earlier": standing.earlier(status.attempts) or None,
                "started": status.started,
            }
            known |= {"seconds": status.seconds, "cpu_seconds": status.cpu_seconds}
            name = repetitions.name(cell.name, status)
            found.append(({**_kept(run), **vars(cell), **known, "cell": name, repetitions.REPEATS: cell.name}, run))
    return found


def _kept(run: Job) -> Row:
    return {**_versions(run), **start_weights.of_cell(run), **stored.row(run)}


def _versions(job: Job) -> Row:
    """Commit and packages from a cell's evaluation, for a row that was written without; {} where it is restored."""
    found = sorted(job.folder.glob(f"runs/*/eval/*/{MANIFEST}"))
    return versions.columns(read_sealed(found[0])) if found else {}
