"""A training stage whose process 1 fails as FAILS sets, while process 0 waits for it. `test_launch.py` starts it."""

from __future__ import annotations

import errno
import os
import signal
import sys

from fgrpo import cli
from fgrpo.errors import UserError
from fgrpo.training import distributed


def body(_: object) -> None:
    failure = os.environ["FAILS"]
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


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    cli.run(body, cli.parser("fails"), sys.argv[1:])
