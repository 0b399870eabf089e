"""Ends the processes that this process started when it is gone, however it went (SIGKILL included).

An engine that starts workers of its own leaves them behind when its parent is killed, and they keep the GPU's memory, so that
the run that carries on has none. `Guard` starts a small process that looks on: it notes the parent's descendants every second,
and when the parent is gone without the word that all is well, it ends those that are left (asked first, then killed).

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

EVERY_S = 1.0
PATIENCE_S = 5.0
WELL = b"well\n"
_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """SIGTERM to this process when the one that started it is gone, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)


class Guard:
    """Watches over what this process starts from now on, until `release`."""

    def __init__(self) -> None:
        # -P: the types.py beside this file is not Python's
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(os.getpid())]
        # a session of its own: ctrl-C at the terminal is for the parent, which then releases it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def release(self) -> None:
        """What was started has been stopped by its owner."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(WELL)
                self._process.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


def watch(parent: int) -> None:
    """Look on until standard input ends or `parent` is gone; without `WELL` in the input, end what it left.

    The input alone does not tell: a worker that the parent forked holds the other end of it open.
    """
    import psutil

    known: set[psutil.Process] = set()  # compared by id and start, so that an id used again is somebody else
    said = b""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            known |= set(psutil.Process(parent).children(recursive=True)) - {psutil.Process()}
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            piece = os.read(sys.stdin.fileno(), 64)
            said += piece
            if not piece or said == WELL:
                break
        elif os.getppid() != parent:
            break
    if said == WELL:
        return
    left = {process for process in known if process.is_running()}
    for process in set(left):
        with contextlib.suppress(psutil.NoSuchProcess):
            left |= set(process.children(recursive=True))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(list(left), timeout=PATIENCE_S)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
