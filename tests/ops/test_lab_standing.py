"""How jobs stand: damaged results, what a waiting cell waits for, and what the page says of attempts and shared jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgrpo.runs import write_json
from ops.lab import cells_text, results, runner, standing, stored, versions
from ops.lab.cells import Cell, Job, Plan
from ops.lab.runner import Status
from tests.ops.test_lab import laboratory, outcomes

WAITS = "weak/fgrpo/seed-0"


def leave(job: Job, status: Status) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / runner.STATUS, vars(status))


def named(plan: Plan, name: str) -> Job:
    return next(job for job in plan.jobs if job.name == name)


def row_of(plan: Plan, name: str) -> dict[str, Any]:
    return next(row for row in results.rows_of(plan) if row["cell"] == name)


def test_a_finished_cell_without_its_results_is_damaged_and_does_not_count(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path)
    job = plan.of_cell[Cell("base", "fgrpo", 1)]
    for file in (stored.ROW, stored.QUESTIONS, stored.CURVES):
        path = job.folder / file
        whole = path.read_bytes()
        for content in (b"", b"PAR1 torn {", b"[3"):
            path.write_bytes(content)
            assert stored.damage(job), (file, content)
        path.unlink()
        row = row_of(plan, "base/fgrpo/seed-1")
        assert (row["state"], row["reason"]) == ("damaged", f"{file} is missing; {stored.AGAIN}")
        assert "sampled/accuracy" not in row and not stored.is_done(job)
        assert outcomes(declared, plan, tmp_path)["H2"] == "undecided"  # two seeds of at least three
        path.write_bytes(whole)
        assert stored.is_done(job)


def test_a_damaged_cell_runs_again_and_says_why(tmp_path: Path) -> None:
    job = Job("cells/a/b/seed-0", "k", tmp_path / "cell", (("true",),))
    leave(job, Status("done", job.key, started="t"))
    ran: list[Job] = []
    assert runner.Runner(1, ran.append, lambda line: None, stored.damage).run([job]) == {}
    (attempt,) = runner.read(job.folder).attempts
    assert ran == [job] and attempt["state"] == "done" and attempt["reason"].startswith("cell.json is missing")


def test_no_answers_are_damage(tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    job = plan.of_cell[Cell("base", "sft", 0)]
    results.write_rows(job.folder / stored.QUESTIONS, [])
    assert "no answers" in stored.damage(job)
    assert stored.damage(named(plan, "worlds/base")) == ""  # what cells share has other files


@pytest.mark.parametrize("need", ["worlds/base", "backbones/weak", "chains/weak/seed-0"])
def test_a_waiting_cell_names_what_failed_before_it(tmp_path: Path, need: str) -> None:
    _, plan = laboratory(tmp_path)
    job = named(plan, need)
    leave(job, Status("failed", job.key, "no space", started="t"))
    row = row_of(plan, WAITS)
    assert (row["state"], row["reason"]) == ("failed", f"{need}: no space")
    leave(job, Status("stopped", job.key, runner.KILLED, started="t"))
    row = row_of(plan, WAITS)
    assert (row["state"], row["reason"]) == ("not started", f"{need} was stopped: {runner.KILLED}")
    attempt = {"state": "failed", "reason": "no space", "started": "t", "key": job.key}
    leave(job, Status(key=job.key, attempts=(attempt,)))  # as another checkout restores it
    assert row_of(plan, WAITS)["reason"] == f"{need}: no space"
    leave(job, Status("failed", "another key", "no space", started="t"))
    assert (row_of(plan, WAITS)["state"], row_of(plan, WAITS)["reason"]) == ("not started", None)


def test_the_page_lists_shared_jobs_with_their_attempts(tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    attempt = {"state": "stopped", "reason": "by hand", "started": "t"}
    chain, backbone = named(plan, "chains/base/seed-0"), named(plan, "backbones/weak")
    leave(chain, Status("done", chain.key, cpu_seconds=3600.0, started="u", attempts=(attempt,)))
    leave(backbone, Status("failed", backbone.key, "no teacher", cpu_seconds=1800.0, started="t"))
    text = "\n\n".join(cells_text.section(results.rows_of(plan), standing.shared(plan), "`abc`", "laboratory/x/"))
    assert "| chains/base/seed-0 | done | – | stopped: by hand | 3,600 |" in text
    assert "| backbones/weak | failed | no teacher | – | 1,800 |" in text and "worlds/base" not in text
    assert "of the jobs below that cells share: 1.5 h" in text
    assert "- weak/fgrpo/seed-0: failed: backbones/weak: no teacher" in text
    assert "Code that wrote this page: `abc`." in text and "[laboratory/x/](laboratory/x/)" in text


def test_the_page_says_what_made_each_cell(tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    rows = results.rows_of(plan)
    new = next(row for row in rows if row["cell"] == "base/fgrpo/seed-1")
    new.update({"commit": "beef", "package/torch": "2.0", "package/numpy": "1.9", "cpu": "a CPU", "arithmetic": "f00d"})
    text = "\n".join(cells_text.section(rows, {}))
    assert "| `beef` | torch 2.0, numpy 1.9 | a CPU | f00d | base/fgrpo (1) |" in text
    old = next(line for line in text.splitlines() if line.startswith("| `c0ffee`"))
    assert "base/sft (0, 1, 2)" in old and "base/fgrpo (0, 2)" in old


def test_versions_come_from_the_manifest_and_this_machine(tmp_path: Path) -> None:
    manifest = {"commit": "c", "dirty": True, "packages": {"torch": "2.0", "scipy": "1.0", "trl": None}}
    assert versions.columns(manifest) == {"commit": "c", "dirty": True, "package/torch": "2.0"}
    assert versions.columns({}) == {"commit": None, "dirty": None}  # as cells of before have it
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A B\nmodel name\t: A B\n")
    assert versions.cpu(tmp_path / "cpuinfo") == "A B" and versions.cpu(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text(
        "cpu family\t: 6\nmodel\t\t: 167\nmodel name\t: A B\nstepping\t: 1\nmodel\t\t: 8\n"
    )
    assert versions.cpu(tmp_path / "cpuinfo") == "A B (family 6, model 167, stepping 1)"
    row = {**versions.columns(manifest), "cpu": "A B"}
    assert versions.words(row) == "commit c with changes with torch 2.0, on A B"
    row["arithmetic"] = "f00d"
    assert versions.words(row) == "commit c with changes with torch 2.0, on A B, arithmetic f00d"
    assert all(versions.is_column(name) for name in row) and not versions.is_column("sampled/accuracy")


def test_a_finished_cell_records_its_versions(tmp_path: Path) -> None:
    _, plan = laboratory(tmp_path)
    assert stored.row(plan.of_cell[Cell("base", "sft", 0)])["cpu"] == versions.cpu()
