"""Finished cells as files of the repository: a lab goes on from them in another checkout, and a repeated cell is compared."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fgrpo.errors import UserError
from fgrpo.runs import write_json
from ops.lab import archive, cells, declaration, results, runner
from ops.lab.analysis import Results
from ops.lab.cells import Cell, Job, Plan
from tests.ops.test_lab import lab, laboratory


def moved(plan: Plan, old: Path, new: Path) -> Plan:
    """The same jobs, with the same keys, in another checkout's folder."""
    jobs = tuple(replace(job, folder=new / job.folder.relative_to(old)) for job in plan.jobs)
    by_name = {job.name: job for job in jobs}
    return Plan(jobs, {cell: by_name[job.name] for cell, job in plan.of_cell.items()})


def test_a_lab_goes_on_in_another_checkout(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    declared, plan = laboratory(here)
    (here / declaration.SEAL).write_text('{"sha256": "x", "deviations": []}')
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
