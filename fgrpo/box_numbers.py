"""Groups of numbers in a text, as models write coordinates: any brackets, any separators, full-width characters, units.

Every pattern is linear: repeats are possessive or bounded, and a group holds no bracket but its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NUMBER = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_ITEM = rf"[\"']?{NUMBER}(?:\s?(?:px|pixels?|%)(?!\w))?[\"']?"
_NEXT = r"(?:\s*+[,;]\s*+|\s++)"
_MOST = 31  # numbers of a group after its first; a longer list is nothing that anyone points with
_LIST = rf"{_ITEM}(?:{_NEXT}{_ITEM}){{1,{_MOST}}}+"
_BEFORE = r"(?:\\(?:left|right)?)?"  # LaTeX: \[ or \left[
_GROUP = re.compile(rf"{_BEFORE}([\[({{<])\s*+({_LIST})\s*+[,;]?\s*+{_BEFORE}([\])}}>])")
_OPEN = re.compile(_LIST + r"\s*+[,;]?")
_VALUE = re.compile(rf"({NUMBER})\s?(%?)")
_CLOSING = {"[": "]", "(": ")", "{": "}", "<": ">"}
_WIDE = "，、،；：（）［］【】〔〕「」〈〉《》｛｝＜＞／＝％．－−＋“”‘’＂＇０１２３４５６７８９\u00a0\u3000"
_PLAIN = ",,,;:()[][][][][][]{}<>/=%.--+\"\"''\"'0123456789  "
_TO_PLAIN = str.maketrans(_WIDE, _PLAIN)
_FURTHEST = 80  # blanks between two brackets, such as an indented line

Number = tuple[float, str]  # a value, and how it is written


class Group(NamedTuple):
    """Numbers in one pair of brackets, which lie at `start` and `end`; `is_percent`: each is a percentage."""

    start: int
    end: int
    numbers: tuple[Number, ...]
    is_percent: bool


def plain(text: str) -> str:
    """`text` with ASCII signs for full-width ones, character by character: all places stay."""
    return text if text.isascii() else text.translate(_TO_PLAIN)


def groups(text: str) -> list[Group]:
    """The groups of 2 to 32 numbers in matching brackets, in order; of a plain text."""
    found = []
    for match in _GROUP.finditer(text):
        read = _numbers(match.group(2))
        if read is not None and _CLOSING[match.group(1)] == match.group(3):
            found.append(Group(match.start(), match.end(), *read))
    return found


def without_brackets(text: str) -> Group | None:
    """A text that is a list of numbers and no more; None for any other."""
    match = _OPEN.fullmatch(text.strip())
    read = _numbers(match.group()) if match else None
    return Group(0, len(text), *read) if read else None


def _numbers(text: str) -> tuple[tuple[Number, ...], bool] | None:
    """The numbers of a list, and whether they are percentages; None if only some are."""
    found = [(float(m.group(1)), m.group(1) + m.group(2)) for m in _VALUE.finditer(text)]
    percent = {written.endswith("%") for _, written in found}
    return (tuple(found), percent == {True}) if len(percent) == 1 else None


def wrapped(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the brackets stand that hold text[start:end], and blanks, alone; None if there are none."""
    before, after = start, end
    while before > max(0, start - _FURTHEST) and text[before - 1].isspace():
        before -= 1
    while after < min(len(text), end + _FURTHEST) and (text[after].isspace() or text[after] in ",;"):
        after += 1
    if before == 0 or after == len(text) or _CLOSING.get(text[before - 1]) != text[after]:
        return None
    return before - 1, after + 1
