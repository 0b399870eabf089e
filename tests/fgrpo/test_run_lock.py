"""The lock of a run folder is that of one process: its forked workers do not keep it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from fgrpo.run_lock import lock

HOLDER = """
import os, sys, time
from pathlib import Path
from fgrpo.run_lock import lock
held = lock(Path(sys.argv[1]))
if os.fork() == 0:  # a worker, which says that it runs
    print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_second_holder_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    held = lock(tmp_path / "run")
    with pytest.raises(UserError, match=r"another process is working on .*run"):
        lock(tmp_path / "run")
    held.close()
    lock(tmp_path / "run").close()


def test_a_killed_holder_leaves_no_lock_to_its_workers(tmp_path: Path) -> None:
    """Without the hook the worker, which outlives its parent, has the lock, and the resumed run is refused."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match="another process is working"):
            lock(tmp_path / "run")
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        lock(tmp_path / "run").close()
    finally:
        os.kill(worker, signal.SIGKILL)
