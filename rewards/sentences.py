"""A trace as sentences, each visual or trivial (Appendix A.1); the word lists are in sentence_rules.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

from fgrpo.box_forms import in_one_line
from rewards.sentence_rules import Rules, rules

# A sentence may end after stops (with closing quotes or brackets): Latin ones before a blank, those of other scripts anywhere.
_END = re.compile(r"([.!?…。！？｡।؟۔][.!?…。！？｡।؟۔]*+)[\"'”’)\]*」』）]*+")
_ASCII_END = re.compile(r"([.!?][.!?]*+)[\"')\]*]*+")  # the same, for a line of ASCII characters alone
_LATIN = ".!?…"
_PROTECTED = re.compile(r"<(\w{1,10})>[^<\n]{0,200}</\1>|\[[^\[\]\n]{0,200}\]|\([\d\s.,;+-]{0,200}\)")
_MARKER = r"\(?(?:(?:[Ss]tep )?\d{1,3}|[ivxIVX]{1,4}|[a-zA-Z])[.)]"
_BULLET = re.compile(rf"\s*(?:[-*•–+>#]+\s+|{_MARKER}(?:\s+|\Z))*")
_BARE_MARKER = re.compile(rf"\s*{_MARKER}\Z")
_OPENING = "([\"'“‘*"
_LONGEST_MARKER = 12
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # "U.S", "p.m" before their last full stop
_WORD = re.compile(r"[^\W\d_]+")
_ALNUM = re.compile(r"[^\W_]")
_DIGIT = re.compile(r"\d")
_BOX = re.compile(r"<\w{1,12}>\s*\[")  # the beginning of a box, whatever its tag


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace; `visual` if it may make a claim about the image, and so is judged."""

    text: str
    visual: bool


class Prefix(Sequence[str]):
    """The first `size` of `texts`, without a copy: the contexts of all sentences of a trace take linear memory.

    Equal to a tuple of the same texts.
    """

    __slots__ = ("_size", "_texts")

    def __init__(self, texts: tuple[str, ...], size: int) -> None:
        self._texts, self._size = texts, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        return self._texts[range(self._size)[index]]

    def __iter__(self) -> Iterator[str]:
        return islice(iter(self._texts), self._size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Prefix, tuple)):
            return NotImplemented
        return self is other or (len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True)))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (tuple(self),))

    @staticmethod
    def shares(one: Sequence[str], other: Sequence[str]) -> bool:
        """Whether both are prefixes of one tuple, so that the shorter is what the longer begins with."""
        return isinstance(one, Prefix) and isinstance(other, Prefix) and one._texts is other._texts


def sentences(think: str) -> list[Sentence]:
    """The sentences of a trace, in order.

    A sentence ends at a line end or a sentence end, but not inside a box or coordinates (whatever lines they are printed over), nor after an abbreviation, a decimal
    point or a list marker. Bullets are removed; lines without a word or a number are dropped.
    """
    out = []
    table = rules()
    for line in in_one_line(think).splitlines():
        for text in _split(line, table):
            text = text.strip()
            if _ALNUM.search(text):
                out.append(Sentence(text, _is_visual(text, table)))
    return out


def _split(line: str, table: Rules) -> list[str]:
    begin = _BULLET.match(line).end()  # type: ignore[union-attr]  # always matches, at least the empty string
    pattern = _ASCII_END if line.isascii() else _END
    parts: list[str] = []
    spans: list[tuple[int, int]] | None = None  # searched once a sentence end lies inside the line
    at, size = 0, len(line)
    for end in pattern.finditer(line, begin):
        after = end.end()
        if after >= size:
            break
        if line[after] != " " and not _may_end(end, line):
            continue
        if spans is None:
            is_plain = "[" not in line and "<" not in line and "(" not in line
            spans = [] if is_plain else [m.span() for m in _PROTECTED.finditer(line, begin)]
        start = end.start()
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and spans[at][0] <= start:
            continue
        if end.group() == "." and _is_no_end(line[max(begin, start - 24) : start], line, after, table):
            continue
        parts.append(line[begin:after])
        begin = after
    parts.append(line[begin:])
    return parts


def _may_end(end: re.Match[str], line: str) -> bool:
    """Whether a blank follows a Latin stop, or a capitalized word where the blank is missing ("red.The bus")."""
    after = end.end()
    if line[after].isspace() or end.group(1)[-1] not in _LATIN:
        return True
    before = line[max(0, end.start() - 2) : end.start()]
    return len(before) == 2 and before.isalpha() and before.islower() and line[after : after + 2].istitle()


def _is_no_end(before: str, line: str, after: int, table: Rules) -> bool:
    """Whether a single full stop between `before` and `line[after:]` belongs to an abbreviation or a list marker ("2.")."""
    if len(before) <= _LONGEST_MARKER and _BARE_MARKER.match(before + "."):
        return True
    word = before[before.rfind(" ") + 1 :].lstrip(_OPENING).casefold()
    if word in table.abbreviations:
        return True
    is_unit = word in table.units or ("." in word and _INITIALS.fullmatch(word) is not None)
    if not is_unit and word not in table.numbered:
        return False
    follows = line[after : after + 20].lstrip()[:1]
    return follows.islower() if is_unit else follows.isdigit()


def _is_visual(text: str, table: Rules) -> bool:
    plain = text.lower()
    if table.trivial.match(plain.rstrip(" .!?。")):
        return False
    if not table.prefixes.match(plain) or _DIGIT.search(text) or _BOX.search(text):
        return True
    words = {word.casefold() for word in _WORD.findall(text)}
    singular = {w[:-1] for w in words if w.endswith("s")} | {w[:-2] for w in words if w.endswith("es")}
    return not table.visual_words.isdisjoint(words | singular)
