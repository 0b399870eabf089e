"""A finished cell that runs once more keeps its first run, and comparisons find pairs among the runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fgrpo.errors import UserError
from fgrpo.runs import held, write_json
from ops.lab import __main__ as command
from ops.lab import archive, arithmetic, declaration, repetitions, report, results, runner, start_weights, stored
from ops.lab.analysis import Results
from ops.lab.cells import Cell, Job, Plan
from ops.lab.declaration import Lab, Part
from tests.ops.test_lab import COUNTS, lab, laboratory, leave_results
from tests.ops.test_lab_archive import moved

ONE = Cell("base", "fgrpo", 1)
BETTER = dict.fromkeys(COUNTS["fgrpo"], 59)
PART = Part.model_validate({"metric": "accuracy", "a": "fgrpo", "b": "grpo-t", "direction": "above"})


def finish(job: Job, cell: Cell, started: str, weights: str | None = None, counts: Mapping[str, int] = BETTER) -> None:
    """Leave a finished run of a cell in its folder."""
    declared = lab()
    leave_results(declared, cell, job, counts)
    results.finish_cell(declared, cell, job, "f00d")
    if weights:
        write_json(job.folder / stored.ROW, {**stored.row(job), start_weights.COLUMN: weights})
    write_json(job.folder / runner.STATUS, vars(runner.Status("done", job.key, cpu_seconds=5.0, started=started)))


def twice(top: Path, weights: str | None = None) -> tuple[Plan, Job]:
    """The laboratory, of which one cell ran a second time with better answers."""
    _, plan = laboratory(top)
    job = plan.of_cell[ONE]
    repetitions.make_room(job)
    assert runner.read(job.folder).state == runner.WAITING
    finish(job, ONE, "u", weights)
    repetitions.settle(job)
    return plan, job


def accuracy(top: Path, plan: Plan) -> dict[str, float]:
    results.collect(lab(), plan, top)
    rows = pq.read_table(top / results.CELLS).to_pylist()
    return {row["cell"]: row["sampled/accuracy"] for row in rows if "base/fgrpo/seed-1" in row["cell"]}


def test_the_first_run_stays_the_cells_and_the_further_one_has_a_name(tmp_path: Path) -> None:
    plan, job = twice(tmp_path)
    assert runner.read(job.folder).started == "t" and [one.folder.name for one in repetitions.others(job)] == ["u"]
    first, second = accuracy(tmp_path, plan).values()
    assert list(accuracy(tmp_path, plan)) == ["base/fgrpo/seed-1", "base/fgrpo/seed-1@u"] and second > first
    found = Results.read(lab(), tmp_path)
    assert len(found.done("base", "fgrpo")) == 3 and len(found.runs("base", "fgrpo")) == 4
    assert ("base/fgrpo/seed-1@u", "accuracy") in found.curves
    mean = found.compare("base", "accuracy", "sampled", "fgrpo")
    assert mean is not None and mean.by_seed[1] == pytest.approx(first), "means are over first runs"
    page = report.page("x", found, None, {}, {})
    lines = [line for line in page.splitlines() if line.startswith("| base/fgrpo/seed-1, run ")]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| base/fgrpo/seed-1, run 1", "t", "–"],
        ["| base/fgrpo/seed-1, run 2", "u", "f00d"],
    ]


@pytest.mark.parametrize(
    ("of_runs", "of_partner", "value"),
    [
        ((None, "new"), "new", "second"),
        (("old", "new"), "new", "second"),
        ((None, "new"), None, "first"),
        (("new", "new"), "new", "first"),
        (("old", "new"), "third", None),
    ],
)
def test_a_comparison_takes_the_earliest_runs_of_equal_weights(
    tmp_path: Path, of_runs: tuple[str | None, str], of_partner: str | None, value: str | None
) -> None:
    plan, job = twice(tmp_path, of_runs[1])
    partner = plan.of_cell[Cell("base", "grpo-t", 1)]
    for one, weights in ((job, of_runs[0]), (partner, of_partner)):
        if weights:
            write_json(one.folder / stored.ROW, {**stored.row(one), start_weights.COLUMN: weights})
    by_run = dict(zip(("first", "second"), accuracy(tmp_path, plan).values(), strict=True))
    other = stored.row(partner)["sampled/accuracy"]
    effect = Results.read(lab(), tmp_path).effect("base", PART)
    assert effect is not None
    if value is None:
        assert list(effect.by_seed) == [0, 2] and any(
            "seed 1: no runs of fgrpo and grpo-t" in gap for gap in effect.gaps
        )
    else:
        assert effect.by_seed[1] == pytest.approx(by_run[value] - other) and not effect.gaps


def test_all_runs_are_published_and_come_back(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    plan, _ = twice(here, "new")
    assert archive.publish(plan, here, folder) == 9
    again = moved(plan, here, there)
    archive.restore(again, there, folder)
    assert accuracy(there, again) == accuracy(here, plan)
    (further,) = Results.read(lab(), there).further
    assert (further["arithmetic"], further["start_weights"], further["cpu_seconds"]) == ("f00d", "new", 5.0)
    names = sorted(path.name for path in folder.iterdir())
    texts = [(folder / name).read_text() for name in (archive.ENTRIES, archive.REPEATED)]
    archive.restore(again, there, folder)  # nothing twice
    archive.publish(again, there, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [(folder / name).read_text() for name in (archive.ENTRIES, archive.REPEATED)] == texts


@pytest.mark.parametrize(("started", "first"), [("u", "t"), ("s", "s")])
def test_a_cell_that_was_done_in_two_checkouts_has_two_runs(tmp_path: Path, started: str, first: str) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    stopped = {"state": "stopped", "reason": "killed", "started": "r", "key": "k"}
    status = runner.read(plan.of_cell[ONE].folder)
    write_json(plan.of_cell[ONE].folder / runner.STATUS, vars(replace(status, attempts=(stopped,))))
    archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    job = again.of_cell[ONE]
    finish(job, ONE, started)
    assert "base/fgrpo/seed-1" not in archive.restore(again, there, folder)
    archive.publish(again, there, folder)
    runs = {run.started: run.attempts for run in (runner.read(one.folder) for one in (job, *repetitions.others(job)))}
    assert list(runs) == sorted(("t", started)) and runs["t"] == (stopped,) and not runs[started]
    assert [json.loads(line)["cell"] for line in (folder / archive.REPEATED).read_text().splitlines()] == [ONE.name]
    assert archive.entries(folder)[ONE.name].status.started == first


def test_an_unfinished_repetition_is_listed_and_goes_on(tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    job = plan.of_cell[ONE]
    repetitions.make_room(job)
    write_json(job.folder / runner.STATUS, vars(runner.Status("stopped", job.key, "killed", started="u")))
    (job.folder / "half").touch()
    repetitions.settle(job)
    status = runner.read(job.folder)
    assert (status.state, status.started) == ("done", "t") and not (job.folder / "half").exists()
    assert [(one["state"], one["started"]) for one in status.attempts] == [("stopped", "u")]
    assert repetitions.others(job) == []
    repetitions.make_room(job)
    assert (job.folder / "half").exists() and runner.read(job.folder).started == "u"


def test_a_cell_without_training_has_no_curves_to_name(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    cell = Cell("base", "sft", 0)
    repetitions.make_room(plan.of_cell[cell])
    finish(plan.of_cell[cell], cell, "u", counts=COUNTS["sft"])
    archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    archive.restore(again, there, folder)
    assert len(results.collect(lab(), again, there)) == len(again.of_cell)
    assert [run["cell"] for run in Results.read(lab(), there).further] == ["base/sft/seed-0@u"]


def test_a_cell_at_work_is_left_alone(tmp_path: Path) -> None:
    plan, job = twice(tmp_path)
    with held(job.folder), pytest.raises(UserError):
        repetitions.make_room(job)
    with held(job.folder):
        archive.restore(plan, tmp_path, tmp_path / "none")
    assert runner.read(job.folder).started == "t"


def test_the_command_repeats_one_named_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    job = replace(plan.of_cell[ONE], commands=((sys.executable, "-c", ""),))
    whole = Plan(plan.jobs, {**plan.of_cell, ONE: job})
    write_json(job.folder / runner.STATUS, vars(runner.Status("done", job.key, started="1")))
    chosen = Plan((replace(job, needs=()),), {ONE: job})
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "docs")
    monkeypatch.setattr(declaration, "seal", lambda *_: {"committed": True})
    real = results.finish_cell

    def end(declared: Lab, cell: Cell, job: Job, computed: str | None) -> results.Row:
        leave_results(declared, cell, job, BETTER)
        return real(declared, cell, job, computed)

    monkeypatch.setattr(results, "finish_cell", end)
    monkeypatch.setattr(arithmetic, "fingerprint", lambda: "f00d")
    assert command.run("smoke", lab(), whole, chosen, tmp_path, 1, repeats=True) == {}
    assert runner.read(job.folder).started == "1" and len(repetitions.others(job)) == 1
    assert command.run("smoke", lab(), whole, chosen, tmp_path, 1) == {}
    assert len(repetitions.others(job)) == 1, "a finished cell runs once more only when asked"
    with pytest.raises(SystemExit):
        command.main(["--lab", "main", "--repeat", "--runs", str(tmp_path)])
