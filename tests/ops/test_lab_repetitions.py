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
KILLED = "stopped: a further run: the laboratory was killed before the job ended"
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
    assert not job.folder.exists() and runner.read(repetitions.first(job).folder).started == "t"
    finish(job, ONE, "u", weights)
    return plan, job


def accuracy(top: Path, plan: Plan) -> dict[str, float]:
    results.collect(lab(), plan, top)
    rows = pq.read_table(top / results.CELLS).to_pylist()
    return {row["cell"]: row["sampled/accuracy"] for row in rows if "base/fgrpo/seed-1" in row["cell"]}


def test_the_first_run_stays_the_cells_and_the_further_one_has_a_name(tmp_path: Path) -> None:
    plan, job = twice(tmp_path)
    assert [run.folder.name for run in repetitions.runs(job)] == ["seed-1@t", "seed-1"]
    assert list(accuracy(tmp_path, plan)) == ["base/fgrpo/seed-1", "base/fgrpo/seed-1@u"]
    first, second = accuracy(tmp_path, plan).values()
    assert second > first
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
    assert "| f00d | base/fgrpo (1) |" in page, "what made the further run"


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
    for one, weights in ((repetitions.first(job), of_runs[0]), (partner, of_partner)):
        if weights:
            write_json(one.folder / stored.ROW, {**stored.row(one), start_weights.COLUMN: weights})
    by_run = dict(zip(("first", "second"), accuracy(tmp_path, plan).values(), strict=True))
    other = stored.row(partner)["sampled/accuracy"]
    found = Results.read(lab(), tmp_path)
    effect = found.effect("base", PART)
    assert effect is not None
    assert effect.further == (("base/fgrpo/seed-1@u",) if value == "second" else ())
    if value is None:
        assert list(effect.by_seed) == [0, 2]
        assert any("seed 1: no runs of fgrpo and grpo-t" in gap for gap in effect.gaps)
    else:
        assert effect.by_seed[1] == pytest.approx(by_run[value] - other) and not effect.gaps


def test_what_further_runs_cost_is_counted(tmp_path: Path) -> None:
    plan, job = twice(tmp_path)
    write_json(job.folder / runner.STATUS, vars(replace(runner.read(job.folder), cpu_seconds=36000.0)))
    results.collect(lab(), plan, tmp_path)
    page = report.page("x", Results.read(lab(), tmp_path), None, {}, {})
    assert "CPU time of all cells, without the jobs that they share: 10.0 h" in page


def test_a_cell_is_compared_with_the_published_run_of_its_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, job = twice(tmp_path)
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "docs")
    folder = archive.FOLDER / "x"
    archive.publish(plan, tmp_path, folder)
    row = {**stored.row(job), "cell": ONE.name, "state": "done", "started": "v"}
    assert "all figures are the published ones" in command._against_published("x", row)
    assert "figures differ from the published ones" in command._against_published("x", {**row, "arithmetic": "beef"})
    monkeypatch.setattr(arithmetic, "fingerprint", lambda: "f00d")
    assert command._other_arithmetic("x", ONE.name) == ""
    assert archive.run_for(folder, "base/unknown/seed-1", "f00d") is None


def test_a_pair_does_not_depend_on_which_arm_is_named_first() -> None:
    def run(weights: str, started: str) -> dict[str, object]:
        return {"seed": 0, "start_weights": weights, "started": started}

    a = [run("old", "1"), run("new", "2")]
    b = [run("new", "0"), run("old", "3")]
    assert start_weights.pairs(a, b) == ([a[1]], [b[0]], ())
    assert start_weights.pairs(b, a) == ([b[0]], [a[1]], ())
    assert start_weights.pairs(a[:1], b[:1]) == ([], [], (0,))
    assert start_weights.pairs(a, []) == ([a[0]], [], ())


def test_without_any_pair_the_page_says_why(tmp_path: Path) -> None:
    plan, _ = twice(tmp_path)
    for cell, job in plan.of_cell.items():
        if cell.condition == "base" and cell.method == "grpo-t":
            write_json(job.folder / stored.ROW, {**stored.row(job), start_weights.COLUMN: "other"})
    results.collect(lab(), plan, tmp_path)
    found = Results.read(lab(), tmp_path)
    assert found.effect("base", PART) is None
    said = {verdict.missing for verdict in found.verdicts() if verdict.condition == "base"}
    assert "no runs of fgrpo and grpo-t are known to start from the same SFT weights" in said


def test_all_runs_are_published_and_come_back(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    plan, _ = twice(here, "new")
    assert archive.publish(plan, here, folder) == 9
    again = moved(plan, here, there)
    assert len(archive.restore(again, there, folder)) == 9
    assert accuracy(there, again) == accuracy(here, plan)
    (further,) = Results.read(lab(), there).further
    assert (further["arithmetic"], further["start_weights"], further["cpu_seconds"]) == ("f00d", "new", 5.0)
    names = sorted(path.name for path in folder.iterdir())
    texts = [(folder / name).read_text() for name in (archive.ENTRIES, archive.REPEATED)]
    assert archive.restore(again, there, folder) == []  # nothing twice
    archive.publish(again, there, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [(folder / name).read_text() for name in (archive.ENTRIES, archive.REPEATED)] == texts


def test_a_published_further_run_cannot_vanish(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    plan, job = twice(here)
    archive.publish(plan, here, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (job.folder / stored.ROW).unlink()
    assert archive.publish(plan, here, folder) == 9, "the archive gives it back"
    assert len(repetitions.runs(job)) == 2
    entries = [json.loads(line) for line in (folder / archive.REPEATED).read_text().splitlines()]
    assert [(one["cell"], one["status"]["started"]) for one in entries] == [(ONE.name, "u")]
    assert (folder / stored.QUESTIONS).read_bytes() == before[stored.QUESTIONS]


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
    runs = {run.started: run.attempts for run in (runner.read(one.folder) for one in repetitions.runs(job))}
    assert list(runs) == sorted(("t", started)) and runs["t"] == (stopped,) and not runs[started]
    assert [json.loads(line)["cell"] for line in (folder / archive.REPEATED).read_text().splitlines()] == [ONE.name]
    assert archive.entries(folder)[ONE.name].status.started == first


@pytest.mark.parametrize(("state", "said"), [("stopped", "stopped: a further run: killed"), ("running", KILLED)])
def test_an_unfinished_repetition_leaves_the_cell_done_and_is_listed(tmp_path: Path, state: str, said: str) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    job = plan.of_cell[ONE]
    repetitions.make_room(job)
    assert archive.restore(plan, here, folder) == [], "the room stays free"
    assert not job.folder.exists()
    job.folder.mkdir()
    reason = "killed" if state == "stopped" else ""
    write_json(job.folder / runner.STATUS, vars(runner.Status(state, job.key, reason, started="u")))
    for _ in range(2):
        archive.publish(plan, here, folder)
        row = next(row for row in results.rows_of(plan) if row["cell"] == ONE.name)
        assert (row["state"], row["started"], row["earlier"]) == ("done", "t", said)
    repetitions.make_room(job)
    assert runner.read(job.folder).started == "u", "what is under way goes on"
    again = moved(plan, here, there)
    archive.restore(again, there, folder)
    row = next(row for row in results.rows_of(again) if row["cell"] == ONE.name)
    assert (row["state"], row["earlier"]) == ("done", said)


def test_a_repetition_that_runs_now_is_no_loss(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    job = plan.of_cell[ONE]
    repetitions.make_room(job)
    job.folder.mkdir()
    write_json(job.folder / runner.STATUS, vars(runner.Status("running", job.key, started="u")))
    with held(job.folder):
        assert archive.publish(plan, here, folder) == 9
        row = next(row for row in results.rows_of(plan) if row["cell"] == ONE.name)
    assert (row["state"], row["earlier"]) == ("done", "running: a further run: it has not ended yet")


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
    _, plan = laboratory(tmp_path)
    job = plan.of_cell[ONE]
    with held(job.folder), pytest.raises(UserError):
        repetitions.make_room(job)
    assert [run.folder.name for run in repetitions.runs(job)] == ["seed-1"]
    repetitions.make_room(job)
    finish(job, ONE, "t")
    with pytest.raises(UserError, match=r"seed-1@t exists already; move it away"):
        repetitions.make_room(job)


def test_the_command_repeats_one_named_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    first, second = (stored.row(run) for run in repetitions.runs(job))
    assert (first["arithmetic"], second["arithmetic"]) == (None, "f00d")
    monkeypatch.setattr(arithmetic, "fingerprint", lambda: pytest.fail("nothing is left to compute"))
    assert command.run("smoke", lab(), whole, chosen, tmp_path, 1) == {}
    assert len(repetitions.runs(job)) == 2, "a finished cell runs once more only when asked"
    for words in ([], ["--cell", "mini/fgrpo/seed-0", "--plan"], ["--cell", "mini/fgrpo/seed-0", "--report"]):
        with pytest.raises(SystemExit):
            command.main(["--lab", "main", "--repeat", "--runs", str(tmp_path), *words])
        assert "--repeat runs one cell once more" in capsys.readouterr().err
