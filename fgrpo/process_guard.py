"""Ends the processes that this process started once it is gone, however it ended (SIGKILL included).

An engine whose parent is killed leaves its workers behind. They keep the GPU's memory, and the resumed run has none.
`Guard` starts a small process that lists the parent's descendants every second. When the parent is gone without a release,
this process ends the remaining ones (SIGTERM first, then SIGKILL).

Command (what `Guard` starts): `python fgrpo/process_guard.py <parent's process id>`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

POLL_S = 1.0
PATIENCE_S = 5.0  # between SIGTERM and SIGKILL
RELEASED = b"released\n"
_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent(parent: int | None = None) -> None:
    """Make the kernel send SIGTERM to this process when its parent is gone, however that ended (Linux).

    Args:
        parent: the parent's process id. A parent that is gone already sends no signal: then this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


class Guard:
    """Guards the processes that this process starts from now on, until `release`."""

    def __init__(self) -> None:
        # -P: the types.py in this folder must not shadow Python's own
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(os.getpid())]
        # a session of its own: ctrl-C at the terminal is for the parent, which then releases it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def release(self) -> None:
        """End the guard: the owner of the started processes has stopped them."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(RELEASED)
                self._process.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


def watch(parent: int) -> None:
    """Wait until standard input ends or `parent` is gone; unless the input is `RELEASED`, end the remaining processes.

    The end of the input alone is no sign: a worker that the parent forked keeps the other end of it open.
    """
    import psutil

    known: set[psutil.Process] = set()  # compared by id and start time, so that a reused id is another process
    message = b""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            known |= set(psutil.Process(parent).children(recursive=True)) - {psutil.Process()}
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            piece = os.read(sys.stdin.fileno(), 64)
            message += piece
            if not piece or message == RELEASED:
                break
        elif os.getppid() != parent:
            break
    if message == RELEASED:
        return
    remaining = {process for process in known if process.is_running()}
    for process in set(remaining):
        with contextlib.suppress(psutil.NoSuchProcess):
            remaining |= set(process.children(recursive=True))
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(list(remaining), timeout=PATIENCE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
