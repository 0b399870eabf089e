"""The command line that every stage shares: `--preset`, `--method`, `--overlay`, `--set`, `--runs`, errors and ctrl-C."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from fgrpo import INTERRUPTED
from fgrpo.config import OVERLAY
from fgrpo.errors import UserError
from fgrpo.output import make_printable

SIDE_BY_SIDE = "FGRPO_SIDE_BY_SIDE"  # set for processes whose parent prints the final message
INTERRUPTED_CODE = 130
PEER_LOST = "the connection to another process of the run was lost; see the message of that process"
PATIENCE_S = 60.0  # time for the launcher to end the processes that lost a connection
# messages of gloo and NCCL when the other process is gone
_LOST_WORDS = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "remote process exited")
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # file for the error of a process that torchrun or accelerate started
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
# messages of libraries on a full disk: safetensors and tokenizers (Rust), SQLite, torch.save
_FULL_WORDS = (
    *("No space left on device", "Disk quota exceeded", "disk is full"),
    *("PytorchStreamWriter failed writing", "inline_container.cc"),
)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every stage."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--preset", default="mini", help="a file of configs/scale (default: mini)")
    out.add_argument("--method", default="fgrpo", help="a file of configs/method (default: fgrpo)")
    layers: Any = {"dest": "set", "action": "extend", "nargs": "*", "default": []}  # the later of the two options wins
    out.add_argument("--overlay", **layers, type=OVERLAY.__add__, metavar="NAME", help="files of configs/overlay")
    out.add_argument("--set", **layers, metavar="KEY=VALUE", help='overrides, such as "rl.kl_coef=0.02"')
    out.add_argument("--runs", default="runs", metavar="FOLDER", help="root of the run folders (default: runs)")
    return out


def positive(text: str) -> int:
    """The type of an option that counts something: a whole number of at least 1."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return number


def port(text: str) -> int:
    """The `type` of an option that takes a TCP port. Raises ArgumentTypeError outside 1 to 65535."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def run(
    body: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> None:
    """Parse the arguments and call `body`.

    A `UserError`, a full disk or a folder without permission ends in one line and exit code 2, ctrl-C in exit code 130.
    """
    make_printable()
    args = arguments.parse_args(argv)
    try:
        body(args)
    except KeyboardInterrupt:
        if SIDE_BY_SIDE not in os.environ:
            print(INTERRUPTED, file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)
    except Exception as error:
        line = explain(error)
        if ERROR_FILE in os.environ:
            _end_process_of_run(error, line)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _end_process_of_run(error: Exception, line: str | None) -> NoReturn:
    """End one of several processes immediately: the others wait for it, and library threads may keep it alive.

    Our launcher (`fgrpo.training.launch`) prints the line once; another launcher prints more.
    """
    messages = [str(cause) for cause in _chain(error) if isinstance(cause, RuntimeError)]
    if line is None and any(word in text for text in messages for word in _LOST_WORDS):
        time.sleep(PATIENCE_S)  # another process failed; the launcher is about to report it and end this one
        line = PEER_LOST
    if line is None:
        traceback.print_exception(error)
    else:
        with open(os.environ[ERROR_FILE], "w", encoding="utf-8") as file:
            json.dump({"message": line, "timestamp": int(time.time())}, file)
        if SIDE_BY_SIDE not in os.environ:
            print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if line is None else 2)


def explain(error: BaseException) -> str | None:
    """The message for the user, or None if `error` is our bug and should keep its traceback."""
    if isinstance(error, UserError):
        return str(error)
    for cause in _chain(error):
        if getattr(cause, "errno", None) in _FULL or any(word in str(cause) for word in _FULL_WORDS):
            where = getattr(cause, "filename", None) or "while writing"
            return (
                f"no space left on the disk ({where}); free some space, then rerun to resume: finished items are kept"
            )
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return f"{error.filename}: {str(error.strerror).lower()}; choose another folder, or fix its permissions"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, the errors grouped in it, and their causes."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [*getattr(current, "exceptions", ()), current.__cause__, current.__context__]
