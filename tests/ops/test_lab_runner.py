"""The laboratory's runner, with commands of a line in place of the stages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgrpo.errors import UserError
from fgrpo.runs import held, write_json
from ops.lab import runner
from ops.lab.cells import Job

ROOT = Path(__file__).resolve().parents[2]


def job(folder: Path, name: str, *codes: str, needs: tuple[str, ...] = (), kind: str = "k") -> Job:
    return Job(name, kind, folder / name, tuple((sys.executable, "-c", code) for code in codes), needs)


def note(folder: Path, text: str) -> str:
    return f"open({str(folder / 'notes')!r}, 'a').write({text + chr(10)!r})"


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().split()


def test_jobs_run_once_in_order_and_failures_are_reported(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "first", note(tmp_path, "a"), note(tmp_path, "b")),
        job(tmp_path, "bad", "import sys; print('error: no space'); sys.exit(2)", note(tmp_path, "never")),
        job(tmp_path, "after-bad", note(tmp_path, "never"), needs=("bad",)),
        job(tmp_path, "second", note(tmp_path, "c"), needs=("first",)),
    ]
    told: list[str] = []
    reason = f"{sys.executable}, exit code 2: no space"
    problems = runner.Runner(1, tell=told.append).run(jobs)
    assert notes(tmp_path) == ["a", "b", "c"]
    assert problems == {"bad": reason, "after-bad": "bad, which it needs, is not done"}
    first, bad = runner.read(jobs[0].folder), runner.read(jobs[1].folder)
    assert (first.state, bad.state, bad.reason) == ("done", "failed", reason)
    assert first.cpu_seconds > 0 and any(
        "first: done" in line and "s of CPU" in line and "left" in line for line in told
    )
    jobs[1] = job(tmp_path, "bad", note(tmp_path, "d"))
    assert runner.Runner(1, tell=told.append).run(jobs) == {}
    assert sorted(notes(tmp_path)) == ["a", "b", "c", "d", "never"]
    again = runner.read(jobs[1].folder)
    assert again.state == "done" and [a["reason"] for a in again.attempts] == [reason]


def test_what_the_first_cells_need_goes_first(tmp_path: Path) -> None:
    names = {"backbone": (), "chain-1": (), "chain-2": ("backbone",), "cell-1": ("chain-1",), "cell-2": ("chain-2",)}
    jobs = [job(tmp_path, name, note(tmp_path, name), needs=needs) for name, needs in names.items()]
    assert runner.Runner(1, tell=lambda line: None).run(jobs) == {}
    assert notes(tmp_path) == ["chain-1", "cell-1", "backbone", "chain-2", "cell-2"]


def test_a_job_finds_what_it_shares_behind_links(tmp_path: Path) -> None:
    first = job(tmp_path, "chain", f"open({str(tmp_path / 'chain' / 'sft')!r}, 'w').write('weights')")
    read = (
        f"print(open({str(tmp_path / 'cell' / 'runs' / 'sft')!r}).read(), file=open({str(tmp_path / 'notes')!r}, 'w'))"
    )
    link = (tmp_path / "cell" / "runs" / "sft", tmp_path / "chain" / "sft")
    cell = replace(job(tmp_path, "cell", read, needs=("chain",)), links=(link,))
    assert runner.Runner(2, tell=lambda line: None).run([first, cell]) == {}
    assert notes(tmp_path) == ["weights"] and not os.path.isabs(os.readlink(link[0]))


def test_a_result_that_cannot_be_read_fails_its_job(tmp_path: Path) -> None:
    def finish(job: Job) -> None:
        raise UserError("no scores")

    only = job(tmp_path, "x", "pass")
    assert runner.Runner(1, finish, tell=lambda line: None).run([only]) == {"x": "no scores"}
    assert runner.read(only.folder).reason == "no scores"


def test_processes_have_one_thread_and_are_no_more_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = f"""
import os, time
assert os.environ["OMP_NUM_THREADS"] == "1"
name = {str(tmp_path / "notes")!r}
out = open(name, "a"); out.write("+1 "); out.flush()
for _ in range(6000):  # the first two run side by side
    if open(name).read().count("+1") > 1: break
    time.sleep(0.01)
time.sleep(0.5); out.write("-1 ")
"""
    assert runner.Runner(2, tell=lambda line: None).run([job(tmp_path, f"j{i}", code) for i in range(5)]) == {}
    running, most = 0, 0
    for change in notes(tmp_path):
        running += int(change)
        most = max(most, running)
    assert most == 2


def test_a_job_that_failed_twice_runs_again_only_if_it_is_asked_for(tmp_path: Path) -> None:
    bad = note(tmp_path, "bad") + "; raise SystemExit(1)"
    jobs = [
        job(tmp_path, "world", note(tmp_path, "world")),
        job(tmp_path, "bad", bad, needs=("world",)),
        job(tmp_path, "cell", note(tmp_path, "cell"), needs=("bad", "world")),
    ]
    told: list[str] = []
    for _ in range(2):
        assert runner.Runner(1, tell=told.append).run(jobs)["bad"].endswith("exit code 1")
    assert notes(tmp_path) == ["world", "bad", "bad"]
    problems = runner.Runner(1, tell=told.append).run(jobs)
    assert problems["bad"].startswith("failed twice") and "CELL=" in problems["bad"]
    assert problems["cell"] == "bad, which it needs, is not done"
    assert notes(tmp_path) == ["world", "bad", "bad"]
    runner.Runner(1, tell=told.append, insists=True).run(jobs)
    assert notes(tmp_path) == ["world", "bad", "bad", "bad"]
    mended = [jobs[0], job(tmp_path, "bad", note(tmp_path, "good"), needs=("world",)), jobs[2]]
    assert runner.Runner(1, tell=told.append).run(mended) == {}  # another job: its failures do not count
    assert notes(tmp_path) == ["world", "bad", "bad", "bad", "good", "cell"]


def test_failures_are_counted_over_stops_and_checkouts(tmp_path: Path) -> None:
    one = job(tmp_path, "one", note(tmp_path, "ran"))
    failed = {"state": "failed", "reason": "no space", "started": "a", "key": one.key}
    once = runner.Status("stopped", one.key, "by hand", started="b", attempts=(failed,))
    assert not once.has_ended(one)
    old = {"state": "failed", "reason": "no space", "started": "a"}  # of a status without keys
    for status in (
        replace(once, attempts=(failed, {**failed, "started": "c"})),
        runner.Status(key=one.key, attempts=(failed, old)),
        runner.Status("failed", one.key, "no space", attempts=(old,)),
    ):
        assert status.has_ended(one)
    assert not runner.Status("failed", one.key, "no", attempts=({**failed, "key": "another"},)).has_ended(one)


def test_what_another_declaration_made_stays_among_the_attempts(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "x", note(tmp_path, "a"))]
    assert runner.Runner(1, tell=lambda line: None).run(jobs) == {}
    before = runner.read(jobs[0].folder)
    jobs = [job(tmp_path, "x", note(tmp_path, "b"))]
    assert runner.Runner(1, tell=lambda line: None).run(jobs) == {}
    (attempt,) = runner.read(jobs[0].folder).attempts
    assert (attempt["state"], attempt["key"], attempt["started"]) == ("done", before.key, before.started)
    assert attempt["reason"] == runner.OTHERWISE and attempt["cpu_seconds"] == before.cpu_seconds


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from ops.lab import runner
from ops.lab.cells import Job
slow = "import time; open({notes!r}, 'a').write('slow '); time.sleep(60)"
jobs = [Job(n, "k", Path({folder!r}) / n, ((sys.executable, "-c", c),)) for n, c in (("quick", {quick!r}), ("slow", slow))]
runner.Runner(1).run(jobs)
"""


def test_a_killed_laboratory_resumes_with_the_cell_it_was_at(tmp_path: Path) -> None:
    quick = note(tmp_path, "quick")
    code = KILLED.format(root=str(ROOT), notes=str(tmp_path / "notes"), folder=str(tmp_path), quick=quick)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "notes").exists() and "slow" in notes(tmp_path), process)
    assert runner.read(tmp_path / "slow").state == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (runner.read(tmp_path / "slow").state, runner.read(tmp_path / "quick").state) == ("stopped", "done")
    jobs = [job(tmp_path, "quick", quick), job(tmp_path, "slow", note(tmp_path, "resumed"))]
    assert runner.Runner(1, tell=lambda line: None).run(jobs) == {}
    assert notes(tmp_path) == ["quick", "slow", "resumed"]
    assert [a["state"] for a in runner.read(tmp_path / "slow").attempts] == ["stopped"]


def wait_until(ready: Any, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if ready():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the laboratory did not start its jobs")


def test_a_job_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, mine = (
        job(tmp_path, "shared", note(tmp_path, "twice")),
        job(tmp_path, "mine", note(tmp_path, "mine"), needs=("shared",)),
    )
    shared.folder.mkdir()
    lock = held(shared.folder)
    lock.__enter__()
    write_json(shared.folder / runner.STATUS, vars(runner.Status("running", shared.key)))

    def other_process_ends(seconds: float) -> None:
        write_json(shared.folder / runner.STATUS, vars(runner.Status("done", shared.key)))
        lock.__exit__(None, None, None)
        monkeypatch.undo()

    monkeypatch.setattr(runner.time, "sleep", other_process_ends)
    assert runner.Runner(1, tell=lambda line: None).run([shared, mine]) == {}
    assert notes(tmp_path) == ["mine"]


def test_time_left_is_of_the_measured_cost() -> None:
    jobs = [replace(job(Path("x"), str(i), "pass"), weight=2.0) for i in range(6)]
    assert runner.time_left(jobs, {"k": (600.0, 1.0)}, 2).startswith("6 left, about 1.0 h with 2 processes")
    assert "not known yet (k)" in runner.time_left(jobs, {}, 2)
