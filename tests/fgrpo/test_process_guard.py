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
time.sleep(2)
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
