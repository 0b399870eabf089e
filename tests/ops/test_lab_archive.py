"""Finished cells as files of the repository: a lab goes on from them in another checkout, and a repeated cell is compared."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.runs import held, write_json
from ops.lab import archive, cells, declaration, results, runner
from ops.lab.__main__ import show
from ops.lab.analysis import Results
from ops.lab.cells import Cell, Job, Plan
from tests.ops.test_lab import lab, laboratory


def moved(plan: Plan, old: Path, new: Path) -> Plan:
    """The same jobs, with the same keys, in another checkout's folder."""
    jobs = tuple(replace(job, folder=new / job.folder.relative_to(old)) for job in plan.jobs)
    by_name = {job.name: job for job in jobs}
    return Plan(jobs, {cell: by_name[job.name] for cell, job in plan.of_cell.items()})


def seal(top: Path, *texts: str) -> None:
    """A seal of the first declaration, and of its changes."""
    first, *changes = ({"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()} for text in texts)
    write_json(top / declaration.SEAL, {**first, "deviations": changes})


def test_a_lab_goes_on_in_another_checkout(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    declared, plan = laboratory(here)
    seal(here, "x")
    before = results.collect(declared, plan, here)
    assert archive.publish(plan, here, folder) == 9
    again = moved(plan, here, there)
    restored = archive.restore(again, there, folder)
    assert restored == [cell.name for cell in plan.of_cell if cell.condition == "base"]
    assert results.collect(declared, again, there) == before
    for name in (results.QUESTIONS, results.CURVES):
        assert pq.read_table(there / name).to_pylist() == pq.read_table(here / name).to_pylist()
    assert declaration.sealed(there) == declaration.sealed(here)
    verdicts = [(v.hypothesis, v.outcome) for v in Results.read(declared, there).verdicts()]
    assert verdicts == [(v.hypothesis, v.outcome) for v in Results.read(declared, here).verdicts()]
    assert archive.restore(again, there, folder) == []  # nothing twice
    one = again.of_cell[Cell("base", "fgrpo", 0)].folder
    assert pc.unique(pq.read_table(one / results.QUESTIONS)["cell"]).to_pylist() == ["base/fgrpo/seed-0"]


def test_what_is_published_stays_published(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    first = (folder / archive.ENTRIES).read_text()
    assert archive.publish(moved(plan, here, there), there, folder) == 9  # a checkout that has run nothing
    assert (folder / archive.ENTRIES).read_text() == first


def test_every_attempt_reaches_another_checkout_and_stays(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    states = {"weak/fgrpo/seed-0": "stopped", "weak/zero/seed-0": "failed", "long/zero/seed-1": "running"}
    of = {cell.name: job for cell, job in plan.of_cell.items()}
    chain = next(job for job in plan.jobs if job.name == "chains/weak/seed-1")
    for name, job in [*((states[name], of[name]) for name in states), ("failed", chain)]:
        job.folder.mkdir(parents=True)
        reason = "" if name == "running" else "no space"
        status = runner.Status(name, job.key, reason, seconds=8.0, cpu_seconds=7.0, started="t")
        write_json(job.folder / runner.STATUS, vars(status))
    with held(of["long/zero/seed-1"].folder):
        archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    assert len(archive.restore(again, there, folder)) == 9
    rows = {row["cell"]: row for row in results.rows_of(again)}
    earlier = {name: rows[name]["earlier"] for name in states}
    assert earlier["weak/fgrpo/seed-0"] == "stopped: no space" and earlier["weak/zero/seed-0"] == "failed: no space"
    assert earlier["long/zero/seed-1"].startswith("running: it had not ended when")
    assert rows["weak/fgrpo/seed-1"]["reason"] == "chains/weak/seed-1: no space"
    assert rows["weak/fgrpo/seed-0"]["state"] == "not started" and rows["weak/fgrpo/seed-0"]["cpu_seconds"] == 7.0
    shared = (folder / archive.SHARED).read_text()
    for _ in range(2):
        archive.publish(again, there, folder)
    assert {cell for cell, entry in archive.entries(folder).items() if entry.status.attempts} == set(states)
    assert (folder / archive.SHARED).read_text() == shared
    job = next(job for cell, job in again.of_cell.items() if cell.name == "weak/zero/seed-0")
    commands = replace(job, commands=(("false",),), needs=())
    write_json(job.folder / runner.STATUS, {**vars(runner.read(job.folder)), "key": commands.key})
    runner.Runner(1, tell=lambda line: None).run([commands])
    assert [a["reason"] for a in runner.read(job.folder).attempts] == ["no space"]
    runner.Runner(1, tell=lambda line: None).run([commands])
    archive.restore(again, there, folder)
    assert len(runner.read(job.folder).attempts) == 2  # nothing twice
    archive.publish(plan, here, folder)  # where they ran
    assert runner.read(of["weak/zero/seed-0"].folder).state == "failed"


def test_a_shared_job_that_failed_and_was_done_then_blocks_no_cell_elsewhere(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    chain = next(job for job in plan.jobs if job.name == "chains/weak/seed-1")
    chain.folder.mkdir(parents=True)
    failed = {"state": "failed", "reason": "no space", "started": "t"}
    status = runner.Status("done", chain.key, seconds=8.0, cpu_seconds=7.0, started="u", attempts=(failed,))
    write_json(chain.folder / runner.STATUS, vars(status))
    archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    archive.restore(again, there, folder)
    row = next(row for row in results.rows_of(again) if row["cell"] == "weak/fgrpo/seed-1")
    assert (row["state"], row["reason"]) == ("not started", None)
    past = runner.read(next(job for job in again.jobs if job.name == chain.name).folder).attempts
    assert [one["state"] for one in past] == ["failed", "done"]


def test_an_attempt_that_the_archive_alone_knows_is_added_to_a_finished_cell(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    job = plan.of_cell[Cell("base", "fgrpo", 0)]
    folder.mkdir()
    status = runner.Status("stopped", job.key, "killed", cpu_seconds=5.0)
    write_jsonl(folder / archive.ENTRIES, [{"cell": "base/fgrpo/seed-0", "status": vars(status), "row": {}}])
    archive.publish(plan, here, folder)
    (row,) = [row for row in results.rows_of(plan) if row["cell"] == "base/fgrpo/seed-0"]
    assert (row["state"], row["earlier"], row["cpu_seconds"]) == ("done", "stopped: killed", 8.0)
    archive.publish(plan, here, folder)
    entry = archive.entries(folder)["base/fgrpo/seed-0"]
    assert len(entry.status.attempts) == 1 and entry.row["earlier"] == "stopped: killed"


@pytest.mark.parametrize("repeated", [1, 9])
def test_results_of_another_folder_do_not_replace_the_published_ones(tmp_path: Path, repeated: int) -> None:
    """A job's key holds the path of its results, so no cell of another RUNS is the published one."""
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, again = laboratory(there)
    for job in list(again.of_cell.values())[repeated:]:
        shutil.rmtree(job.folder, ignore_errors=True)
    with pytest.raises(UserError, match=r"would delete \d finished cells .*base/sft/seed-\d.* publish with the RUNS"):
        archive.publish(again, there, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_cell_that_is_no_longer_declared_leaves_the_archive(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    fewer = Plan(plan.jobs, {c: job for c, job in plan.of_cell.items() if c != Cell("base", "sft", 0)})
    assert archive.publish(fewer, here, folder) == 8


def test_what_a_recorded_deviation_changed_is_replaced_once_it_has_run_again(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    seal(here, "x")
    archive.publish(plan, here, folder)
    cell = Cell("base", "fgrpo", 0)
    job = replace(plan.of_cell[cell], inputs="changed")
    changed = Plan(plan.jobs, {**plan.of_cell, cell: job})
    seal(here, "x", "y")
    with pytest.raises(UserError, match="1 finished cells"):
        archive.publish(changed, here, folder)
    write_json(job.folder / runner.STATUS, vars(runner.Status("done", job.key, started="u")))
    assert archive.publish(changed, here, folder) == 9
    assert archive.entries(folder)[cell.name].status.key == job.key


def test_publishing_that_fails_leaves_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*given: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(archive, "write_jsonl", fails)
    with pytest.raises(OSError, match="no space"):
        archive.publish(plan, here, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_archive_has_a_table_of_all_cells(tmp_path: Path) -> None:
    here, folder = tmp_path / "here", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    rows = pq.read_table(folder / results.CELLS).to_pylist()
    assert [row["cell"] for row in rows] == [cell.name for cell in plan.of_cell]
    assert {row["state"] for row in rows} == {"done", "not started"}


def test_entries_of_before_are_read(tmp_path: Path) -> None:
    """The repository's own archive: its first cells have no packages, no processor and no keys of attempts."""
    folder = Path(__file__).resolve().parents[2] / archive.FOLDER / "main"
    done = {name: entry for name, entry in archive.entries(folder).items() if entry.row}
    plan = cells.plan(declaration.load("main"), Path("runs/lab/main"))
    jobs = {cell.name: job for cell, job in plan.of_cell.items()}
    assert len(done) >= 26 and all(entry.status.is_done(jobs[name]) for name, entry in done.items())
    assert moved_restores(plan, tmp_path, folder) == sorted(done)


def moved_restores(plan: Plan, new: Path, folder: Path) -> list[str]:
    return sorted(archive.restore(moved(plan, Path("runs/lab/main"), new), new, folder))


def test_a_cell_that_is_declared_otherwise_now_is_not_restored(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    seeded = lab(set=("rl.kl_coef=0.02",))
    other = moved(cells.plan(seeded, here), here, there)
    assert archive.restore(other, there, folder) == []


def test_a_cell_that_runs_here_is_not_overwritten(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    own = again.of_cell[Cell("base", "fgrpo", 0)]
    own.folder.mkdir(parents=True)
    write_json(own.folder / runner.STATUS, vars(runner.Status("failed", own.key, "no space", started="t")))
    assert "base/fgrpo/seed-0" not in archive.restore(again, there, folder)
    assert runner.read(own.folder).reason == "no space"


def test_what_restored_cells_share_does_not_run(tmp_path: Path) -> None:
    note = tmp_path / "ran"

    def job(name: str, *needs: str) -> Job:
        code = f"open({str(note)!r}, 'a').write({name!r} + chr(10))"
        return Job(name, "k", tmp_path / name, ((sys.executable, "-c", code),), needs)

    jobs = [job("world"), job("chain-1", "world"), job("chain-2", "world"), job("a", "chain-1"), job("b", "chain-2")]
    jobs[3].folder.mkdir()
    write_json(jobs[3].folder / runner.STATUS, vars(runner.Status("done", jobs[3].key, started="t")))
    assert runner.Runner(1, tell=lambda line: None).run(jobs) == {}
    assert note.read_text().split() == ["world", "chain-2", "b"]


def test_a_repeated_cell_is_compared_figure_by_figure(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path / "here")
    archive.publish(plan, tmp_path / "here", tmp_path / "docs")
    published = archive.entries(tmp_path / "docs")["base/fgrpo/seed-1"]
    row = next(r for r in results.collect(declared, plan, tmp_path / "here") if r["cell"] == published.cell)
    assert archive.differences({**row, "seconds": 1e9, "commit": "other"}, published) == []
    assert archive.differences({**row, "sampled/accuracy": 0.5}, published) == [
        f"sampled/accuracy: 0.5, published {row['sampled/accuracy']!r}"
    ]
    assert archive.differences({**row, "lambda/consistency": None}, published)


@pytest.mark.parametrize("damage", ["line", "answers", "cell"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    if damage == "line":
        (folder / archive.ENTRIES).write_text('{"cell": "x"}\n')
    elif damage == "answers":
        (folder / results.QUESTIONS).write_bytes(b"PAR1")
    else:
        shutil.copyfile(folder / results.CURVES, folder / results.QUESTIONS)
        table = pq.read_table(folder / results.QUESTIONS)
        pq.write_table(table.filter(pc.equal(table["cell"], "base/sft/seed-0")), folder / results.QUESTIONS)
    with pytest.raises(UserError, match="restore"):
        archive.restore(moved(plan, here, there), there, folder)
    assert not (there / "cells").exists() or not list((there / "cells").rglob(runner.STATUS))


def test_a_plan_knows_the_archived_cells_and_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    _, plan = laboratory(here)
    archive.publish(plan, here, folder)
    again = moved(plan, here, there)
    show(again, list(again.of_cell), 1, folder)
    text = capsys.readouterr().out
    waiting = [cell for cell in again.of_cell if cell.condition != "base"]
    assert re.search(rf"^base/fgrpo/seed-0 +done \({folder}\) 8 s of CPU$", text, re.M)
    assert text.count(f"done ({folder})") == 9 and text.count("not started") == len(waiting) > 0
    needed = len(again.only(waiting).jobs)
    assert f"cells: {len(waiting)} of {len(again.of_cell)} are not done; jobs: {needed} left, about" in text
    assert not (there / "cells").exists(), "it starts and writes nothing"
    show(again, [Cell("base", "fgrpo", 0)], 1, folder)
    text = capsys.readouterr().out
    assert (
        "cells: 0 of 1 are not done; jobs: 0 left" in text
        and "cost of one job, cell, trained: 18 s, 16 s of CPU" in text
    )
