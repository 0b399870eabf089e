"""Parallel commands: a limited number at a time, each with its terminal line and its share of the cores; failures by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fgrpo import parallel

NOTES = """
import json, os, sys
from pathlib import Path
name, out = sys.argv[1:]
here = {key: os.environ.get(key) for key in ("TQDM_POSITION", "OMP_NUM_THREADS", "FGRPO_SIDE_BY_SIDE")}
(Path(out) / name).write_text(json.dumps(here))
sys.exit(name in ("b", "d"))
"""


PARENT = """
import sys
from fgrpo import parallel
child = "import os, time; os.write(1, b'here\\\\n'); time.sleep(600)"  # in one piece: both have one pipe
parallel.run({name: [sys.executable, "-c", child] for name in "abc"}, 2)
"""


def test_all_run_and_those_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    commands = {name: [sys.executable, "-c", NOTES, name, str(tmp_path)] for name in "abcde"}
    assert sorted(parallel.run(commands, 2)) == ["b", "d"]
    environments = {name: json.loads((tmp_path / name).read_text()) for name in commands}
    assert {environment["TQDM_POSITION"] for environment in environments.values()} == {"0", "1"}
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert all(
        environment["OMP_NUM_THREADS"] == threads and environment["FGRPO_SIDE_BY_SIDE"] == "1"
        for environment in environments.values()
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert parallel.run({"a": commands["a"]}, 2) == []
    assert json.loads((tmp_path / "a").read_text())["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_the_parent_is_killed(sign: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["here\n"] * 2
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2  # of three, two at a time
    parent.send_signal(sign)
    parent.wait()
    deadline = time.monotonic() + 120
    while any(child.is_running() and child.status() != "zombie" for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = [child for child in children if child.is_running() and child.status() != "zombie"]
    for child in alive:
        child.kill()
    assert not alive
