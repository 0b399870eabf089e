"""A progress bar for stages that run side by side: one line each on a terminal, plain lines of text elsewhere.

On a terminal the line is chosen from outside by tqdm's own TQDM_POSITION (the Makefile gives the second RL arm line 1).
In a log file or a pipe a bar's carriage returns of two processes would mix, so each report is a whole line there, at most
one in `EVERY` seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

EVERY = 15.0  # seconds between two lines where there is no terminal


class Lines:
    """A text file that gets each state of a bar as one line, in one write, without cursor movements."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write what is left of `text` without carriage returns, cursor movements and blanks around it."""
        plain = text.replace("\x1b[A", "").strip()
        return self._out.write(plain + "\n") if plain else 0

    def flush(self) -> None:
        """Flush the file below."""
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
        mininterval=EVERY,
        ascii=True,
        ncols=0,
        position=0,
    )


def moving(shown: tqdm[Any], beside: Callable[[], str]) -> Callable[[int], None]:
    """Moves a bar by a number of items, with what `beside` says (such as what a judge has cost) after it."""

    def move(count: int) -> None:
        shown.set_postfix_str(beside(), refresh=False)
        shown.update(count)

    return move


def _has_width(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that tells its size; on one of no columns tqdm would show nothing."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False
