"""Answer options inside a question's text, and their letters. Used by training sources and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKER = re.compile(r"(?:(?<=\s)|^)\(?([A-Ha-h])[.):](?=\s)")


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """(stem, options) of a text with options such as "A. x B. y" or "(a) x (b) y"; without options, (text, ()).

    The last run A, B, … counts, so "view A." before the options is part of the stem.
    """
    marks = [(m.start(), m.end(), m.group(1).upper()) for m in _MARKER.finditer(text)]
    for first in reversed([i for i, mark in enumerate(marks) if mark[2] == "A"]):
        run = [marks[first]]
        for mark in marks[first + 1 :]:
            if mark[2] == chr(ord("A") + len(run)):
                run.append(mark)
        if len(run) < 2:
            continue
        ends = [start for start, _, _ in run[1:]] + [len(text)]
        options = tuple(text[mark[1] : end].strip().rstrip(",;") for mark, end in zip(run, ends, strict=True))
        if all(options):
            return text[: run[0][0]].strip(), options
    return text.strip(), ()


def letter(index: int) -> str:
    """The letter of option `index`, counted from 0: "A", "B", …"""
    return chr(ord("A") + index)


def letters(count: int) -> tuple[str, ...]:
    """The letters of the first `count` options: ("A", "B", …)."""
    return tuple(letter(index) for index in range(count))


def letter_index(answer: str, choices: Sequence[str]) -> int | None:
    """The index of a letter such as "(B)", "b" or "B."; None if it is not the letter of one of `choices`."""
    plain = answer.strip().strip("().").upper()
    index = ord(plain) - ord("A") if len(plain) == 1 else -1
    return index if 0 <= index < len(choices) else None
