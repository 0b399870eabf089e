"""Answer options inside a question's text, and their letters. Used by training sources and benchmarks.

Real questions hold options such as "A. x B. y", "(a) x (b) y", "(A)1 (B)2" or "Ａ．x Ｂ．y", with words in them that look like
markers ("Hepatitis B."). A text that can be read in two ways is refused: wrong options would be trained on, or scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_MARKS = 400  # of a text; one with more is no question
_HALF_WIDTH = {0xFF21 + i: 0x41 + i for i in range(26)} | {0xFF41 + i: 0x61 + i for i in range(26)}
_HALF_WIDTH |= {ord(wide): ord(half) for wide, half in zip("．、（）：", "..():", strict=True)}
_WIDE = "\u2e80-\uffef"  # Chinese and Japanese text has no blanks
_SIGNS = ".):"
# Marker forms, each looser than the one before it: at the beginning of a line, between blanks, without blanks.
_BRACKETS = (r"^[^\S\n]*(\([A-Za-z]\))", r"(?<![A-Za-z])(\([A-Za-z]\))", r"(\([A-Za-z]\))")
_LETTERS = (
    r"^[^\S\n]*([A-Za-z]{sign})",
    rf"(?:(?<=[\s{_WIDE}])|^)([A-Za-z]{{sign}})(?=\s)",
    rf"(?:(?<=[\s,;?!{_WIDE}])|^)([A-Z]{{sign}})",
)
_STYLES = (_BRACKETS, *(tuple(form.replace("{sign}", re.escape(sign)) for form in _LETTERS) for sign in _SIGNS))
_STATEMENT_END = re.compile(r"(?:^|[\n.?!:;,，。？！]['\")\]]*)\s*$")


_MARKED = (
    (re.compile(r"(\*\*|__)(\(?[A-Za-z][.):])\1"), r"\2 "),
    (re.compile(r"(?<!\w)\[([A-Z])\](?=\s)"), r"(\1)"),
    (re.compile(r"(?m)^[^\S\n]*[-*•+][^\S\n]+(?=\(?[A-Za-z][.):])"), ""),
)
_OTHER_MARKERS = tuple(
    tuple(re.compile(rf"(?<!\S){mark}(?=\s+\S)") for mark in pair)
    for pair in ((r"A\s+[-–—]", r"B\s+[-–—]"), (r"1[.)]", r"2[.)]"), (r"\(1\)", r"\(2\)"), (r"\(?i[.)]", r"\(?ii[.)]"))
)
_ORDERS = r"(?:answer|respond|reply|choose|select|pick|give|provide|output|return|write|indicate|state|directly|only|just|think)"
_WHAT = r"(?:letters?|options?|choices?|answers?|questions?|above|given|following)"
_ASKS = rf"(?:(?:please|now|you should|you must|your task is to|and),? +){{0,3}}{_ORDERS}\b[^\n]{{0,200}}\b{_WHAT}\b[^\n]{{0,200}}"
_INSTRUCTION = re.compile(
    rf"{_ASKS}|(?:your |the )?(?:final |correct )?answer(?: is)? ?[:：]?|请[^\n]{{0,60}}(?:选|答|字母)[^\n]{{0,60}}",
    re.IGNORECASE,
)
_INSTRUCTION_SENTENCE = re.compile(rf"(?<=[.;!?]) +{_ASKS}$", re.IGNORECASE)
_LONGEST_INSTRUCTION = 450  # characters
_CONJUNCTION = re.compile(r"(?:[,;]\s*|\s+)(?:or|and)$")


class UnclearOptions(ValueError):
    """Options that can be read in more than one way, or that repeat. The message is the reason for counts."""


class _Mark(NamedTuple):
    start: int
    end: int
    number: int  # of the letter: 0 for A


@dataclass(frozen=True)
class _Reading:
    """A run of markers A, B, …; `run` is None where several runs of this length have equal claims."""

    length: int
    run: tuple[_Mark, ...] | None


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """(stem, options) of a text with lettered options from A on; without options, (text, ()).

    Markers at the beginnings of lines count first, then those between blanks, then those without blanks. The longest run counts,
    from the A that begins a statement: "view A." before the options is part of the stem. Of a marker that comes twice in a row
    ("Hepatitis B. B. Hepatitis C.") the first belongs to the option before. An instruction after the last option is left out.

    Raises:
        UnclearOptions: several readings have equal claims, or the markers are of another form ("unclear_options"), or two options are equal ("equal_options").
    """
    text = _plain_markers(text)
    plain = text.translate(_HALF_WIDTH)
    readings = [r for forms in _STYLES for upper in (True, False) if (r := _of_style(plain, forms, upper)) is not None]
    if not readings:
        if _is_otherwise_marked(plain):
            raise UnclearOptions("unclear_options")
        return text.strip(), ()
    runs = sorted((r.run for r in readings if r.run is not None), key=lambda run: run[0].start)
    if len(runs) < len(readings) or any(run[-1].start > runs[-1][0].start for run in runs[:-1]):
        raise UnclearOptions("unclear_options")
    run = runs[-1]
    ends = [mark.start for mark in run[1:]] + [len(text)]
    options = tuple(text[mark.end : end].strip().rstrip(",;，；") for mark, end in zip(run, ends, strict=True))
    options = (*options[:-1], without_instruction(options[-1]))
    if last := _CONJUNCTION.sub("", options[-2]):
        options = (*options[:-2], last, options[-1])
    if len({" ".join(option.casefold().split()) for option in options}) < len(options):
        raise UnclearOptions("equal_options")
    return text[: run[0].start].strip(), options


def without_instruction(option: str) -> str:
    """The last option without the instruction after it ("Answer with the option's letter."), which prompts give anew."""
    lines = option.rstrip().split("\n")
    while len(lines) > 1 and (
        not lines[-1].strip() or _INSTRUCTION.fullmatch(lines[-1].strip()[:_LONGEST_INSTRUCTION])
    ):
        lines.pop()
    option = "\n".join(lines).rstrip()
    begin = max(0, len(option) - _LONGEST_INSTRUCTION)
    return option[:begin] + _INSTRUCTION_SENTENCE.sub("", option[begin:])


def _plain_markers(text: str) -> str:
    """`text` with the markers "**A.**", "[A]" and "- A." as "A.", "(A)" and "A."."""
    for pattern, plain in _MARKED:
        text = pattern.sub(plain, text)
    return text


def _is_otherwise_marked(text: str) -> bool:
    """Whether a text has a run of markers that are not read: "A - left B - right", "1. left 2. right"."""
    for first, second in _OTHER_MARKERS:
        opening = next((m for m in first.finditer(text) if _STATEMENT_END.search(text, 0, m.start())), None)
        if opening is not None and second.search(text, opening.end()):
            return True
    return False


def _of_style(text: str, forms: Sequence[str], upper: bool) -> _Reading | None:
    """The reading of markers of one style and case: of the strictest form that gives one, if no looser form gives more."""
    readings = [_longest(text, list(_marks(text, form, upper))) for form in forms]
    first = next((r for r in readings if r is not None), None)
    if first is None or all(r is None or r.length <= first.length for r in readings):
        return first
    return _Reading(first.length, None)


def _marks(text: str, form: str, upper: bool) -> Iterable[_Mark]:
    for match in re.finditer(form, text, re.MULTILINE):
        letter_of = match.group(1).strip("().:")
        if letter_of.isupper() == upper:
            yield _Mark(match.start(1), match.end(1), ord(letter_of.upper()) - ord("A"))


def _longest(text: str, marks: Sequence[_Mark]) -> _Reading | None:
    """The longest run of at least two markers with text after each; None without one."""
    if len(marks) > MOST_MARKS:
        return _Reading(len(marks), None)
    length, starts = _runs(text, marks)
    if length < 2:
        return None
    if len(starts) > 1:  # the A that begins a statement
        starts = [first for first in starts if _STATEMENT_END.search(text, 0, marks[first].start)]
    if len(starts) != 1:
        return _Reading(length, None)
    candidates = list(marks[starts[0] :])
    for kept in (candidates, _without_doubled(text, candidates)):
        chains = _chains(text, kept)
        if chains[0][:2] == (length, 1):
            return _Reading(length, _follow(kept, chains))
    return _Reading(length, None)


def _runs(text: str, marks: Sequence[_Mark]) -> tuple[int, list[int]]:
    """(length of the longest run, indices of the markers A that begin one of that length)."""
    chains = _chains(text, marks)
    lengths = {i: chains[i][0] for i, mark in enumerate(marks) if mark.number == 0}
    longest = max(lengths.values(), default=0)
    return longest, [i for i, length in lengths.items() if length == longest]


def _chains(text: str, marks: Sequence[_Mark]) -> list[tuple[int, int, int | None]]:
    """For each marker: length of the longest run from it, how many such runs there are, and the next marker of one."""
    chains: list[tuple[int, int, int | None]] = [(0, 0, None)] * len(marks)
    for i in range(len(marks) - 1, -1, -1):
        begins = _next_word(text, marks[i].end)
        best: tuple[int, int, int | None] = (1, 1, None) if begins < len(text) else (0, 0, None)
        for j in range(i + 1, len(marks)):
            length, count, _ = chains[j]
            if marks[j].number != marks[i].number + 1 or begins >= marks[j].start or not length:
                continue
            if length + 1 > best[0]:
                best = (length + 1, count, j)
            elif length + 1 == best[0]:
                best = (best[0], best[1] + count, best[2])
        chains[i] = best
    return chains


def _follow(marks: Sequence[_Mark], chains: Sequence[tuple[int, int, int | None]]) -> tuple[_Mark, ...]:
    run: list[_Mark] = []
    at: int | None = 0
    while at is not None:
        run.append(marks[at])
        at = chains[at][2]
    return tuple(run)


def _without_doubled(text: str, marks: Sequence[_Mark]) -> list[_Mark]:
    """`marks` without those that the same marker follows right away."""
    following = [*marks[1:], None]
    return [
        mark
        for mark, after in zip(marks, following, strict=True)
        if after is None or after.number != mark.number or text[mark.end : after.start].strip()
    ]


def _next_word(text: str, start: int) -> int:
    match = re.compile(r"\S").search(text, start)
    return match.start() if match else len(text)


def letter(index: int) -> str:
    """The letter of option `index`, counted from 0: "A", "B", …"""
    return chr(ord("A") + index)


def letters(count: int) -> tuple[str, ...]:
    """The letters of the first `count` options: ("A", "B", …)."""
    return tuple(letter(index) for index in range(count))


def letter_index(answer: str, choices: Sequence[str]) -> int | None:
    """The index of a letter such as "(B)", "b", "B." or "Ｂ"; None if it is not the letter of one of `choices`."""
    plain = answer.translate(_HALF_WIDTH).strip().strip("().:").upper()
    index = ord(plain) - ord("A") if len(plain) == 1 else -1
    return index if 0 <= index < len(choices) else None
