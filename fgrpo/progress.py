"""A progress bar for stages that run in parallel: one line each on a terminal, plain lines of text elsewhere.

On a terminal, tqdm's own TQDM_POSITION selects the line (the Makefile gives the second RL method line 1). In a log file or
a pipe, the carriage returns of two processes would mix. There each report is a line of its own, at most one per `EVERY_S`
seconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

EVERY_S = 15.0  # between two lines where there is no terminal

# tqdm's own lock is shared with forked processes: one that is killed while it draws would block all others for ever.
tqdm.set_lock(threading.RLock())


class Lines:
    """A text file that receives each state of a bar as one line, in one write, without cursor movements."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write `text` as a line, without carriage returns, cursor movements and surrounding blanks; nothing if it is blank."""
        plain = text.replace("\x1b[A", "").strip()
        return self._out.write(plain + "\n") if plain else 0

    def flush(self) -> None:
        """Flush the underlying file."""
        self._out.flush()


def bar(desc: str, total: int, unit: str, initial: int = 0, out: TextIO | None = None) -> tqdm[Any]:
    """A bar over `total` items on standard error (or `out`), `initial` of which are done."""
    stream = sys.stderr if out is None else out
    if _has_width(stream):
        return tqdm(total=total, initial=initial, desc=desc, unit=unit, dynamic_ncols=True, file=stream)
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        file=Lines(stream),
        mininterval=EVERY_S,
        ascii=True,
        ncols=0,
        position=0,
    )


def moving(shown: tqdm[Any], status: Callable[[], str]) -> Callable[[int], None]:
    """A function that advances a bar by a number of items and shows `status` after it, such as the cost of a judge."""

    def move(count: int) -> None:
        shown.set_postfix_str(status(), refresh=False)
        shown.update(count)

    return move


def _has_width(stream: TextIO) -> bool:
    """Whether `stream` is a terminal of known size; on a terminal with 0 columns tqdm would show nothing."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False
