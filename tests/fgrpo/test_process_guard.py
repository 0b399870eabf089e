"""The guard ends what a killed process leaves behind, and leaves released processes alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
# A parent with a child, a grandchild that ignores SIGTERM, as an engine with a stuck worker, and a forked child.
PARENT = """
import os, subprocess, sys, time
from fgrpo.process_guard import Guard
guard = Guard()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
middle = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {stubborn!r}]); print(p.pid, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
forked = os.fork()  # as vLLM starts its engine: it holds whatever the parent has open
if forked == 0:
    time.sleep(600)
print(child.pid, child.stdout.readline().strip(), forked, flush=True)
time.sleep(6)  # the guard starts, and looks every second
if sys.argv[1] == "release":
    guard.release()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("how", "ended"), [("killed", True), ("release", False)])
def test_orphans_are_ended(how: str, ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(family) == 3 and parent.stdout.readline().strip() == "ready"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + (120 if ended else 3)
    while time.monotonic() < deadline and any(p.is_running() and p.status() != "zombie" for p in family):
        time.sleep(0.2)
    alive = [p for p in family if p.is_running() and p.status() != "zombie"]
    for process in alive:
        process.kill()
    assert not alive if ended else len(alive) == 3


LATE = """
import os, sys, time
from fgrpo.process_guard import end_with_parent
parent = os.getppid()
print(os.getpid(), flush=True)
sys.stdin.read()  # the parent's end of it closes when the parent is gone
time.sleep(0.5)
end_with_parent(parent)
time.sleep(600)
"""
KILLED = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_process_whose_parent_is_gone_before_it_asks_ends_itself() -> None:
    """A worker that still imports its modules when its parent is killed gets no signal from the kernel."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, LATE]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=300)
    for process in alive:
        process.kill()
    assert not alive
