"""A training stage whose process 1 fails as FAILS sets, while process 0 waits for it; FAILS=never: none does.

`test_launch.py` starts it. At its end each process prints the native threads that are left.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from pathlib import Path

from fgrpo import cli
from fgrpo.errors import UserError
from fgrpo.training import distributed


def body(_: object) -> None:
    failure = os.environ["FAILS"]
    if failure == "never":
        for _ in range(2):
            with distributed.session(None, 3600):
                assert distributed.on_main(lambda: "connected") == "connected"
        return
    with distributed.session(None, 3600):
        if failure == "main":
            distributed.on_main(lambda: _raise(UserError("the input x is missing; run `make mcts`")))
        if distributed.rank() == 1:
            if failure == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            _raise(
                OSError(errno.ENOSPC, "No space left on device", "checkpoints/x")
                if failure == "disk"
                else KeyError("bug")
            )
        distributed.on_main(lambda: None)  # waits for process 1, for ever


def _print_threads() -> None:
    names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    line = f"rank {distributed.rank()} ends with threads {names}\n"
    os.write(1, line.encode())  # one write: two processes share the pipe, and print may write the line's end by itself


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    atexit.register(_print_threads)  # before that of the session, so it runs after it
    cli.run(body, cli.parser("fails"), sys.argv[1:])
