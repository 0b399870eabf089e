"""What marks numbers as a box or a point: a tag, its attributes, Qwen's tokens, or a key of JSON. On a plain text (`box_numbers.plain`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from fgrpo.box_numbers import NUMBER

TAG, ATTRIBUTES, TOKENS, KEY = "tag", "attributes", "tokens", "key"
_MOST = 600  # characters inside a mark, such as several boxes in one tag
_TOKENS = re.compile(rf"<\|box_start\|>([^<]{{0,{_MOST}}})<\|box_end\|>")
_TAG = re.compile(rf"<(\w{{1,40}})(\s[^<>]{{0,200}})?>([^<]{{0,{_MOST}}})</\1\s?>")
_ATTRIBUTES = re.compile(rf"<(\w{{1,40}})\s([^<>]{{1,{_MOST}}}?)\s?/?>(?:\s{{0,8}}</\1>)?")
_BOX = re.compile(r"(?<!check)(?<!in)box|(?:\A|_)(?:rect|poly|quad|bnd|bb)", re.IGNORECASE)
_PLACE = re.compile(
    r"(?:\A|_)(?:region|ref|loc|location|roi|area|coord|coordinate|position|grounding|bounding|zoom|crop)s?(?:_|\d|\Z)",
    re.IGNORECASE,
)
_POINT = re.compile(r"(?:key)?points?(?:_?2d)?|clicks?", re.IGNORECASE)
_LAYOUT = frozenset(
    re.findall(
        r"\w+",
        "think thinking answer reasoning observation caption summary b i u em strong p li td th span div code pre",
    )
)
_KEY = re.compile(
    r"([\"'])((?:b_?|bound(?:ing)?_?|bnd_?)?box(?:es)?(?:_?2d)?|rect(?:angle)?|poly(?:gon)?s?|quad|xyxy|(?:key)?points?(?:_?2d)?|clicks?)\1\s*+:\s*+",
    re.IGNORECASE,
)
_QUOTED = re.compile(rf"([\"'])([^\"'\n]{{0,{_MOST}}})\1")
_NUMERIC = re.compile(
    rf"(?:[\s\d.,;:=+\-%\[\](){{}}\"']|e(?=[+-]?\d)|px\b|(?:[xy]_?(?:min|max|\d)|left|top|right|bottom|width|height|[xywh])\b){{1,{_MOST}}}+",
    re.IGNORECASE,
)
_MORE = re.compile(r"\s*+,?\s*+[\[(]")
_BRACKET = re.compile(r"[\[\](){}]")
_BEGINS = re.compile(r"[\s\[({\"']*+(?:[+-]?[.\d]|[xy]_?(?:min|\d)|left\b)", re.IGNORECASE)


class Mark(NamedTuple):
    """A mark at text[start:end], with numbers at text[first:last].

    Attributes:
        kind: TAG, ATTRIBUTES, TOKENS or KEY.
        name: of the tag, or the key.
        of: "box"; "place" for what may hold other numbers, too; "point"; "layout"; "" for what marks something else.
    """

    start: int
    end: int
    first: int
    last: int
    kind: str
    name: str
    of: str


def begins_with_number(inside: str) -> bool:
    """Whether the inside of a mark starts as a list of numbers does."""
    return _BEGINS.match(inside) is not None


def tokens(text: str) -> Iterator[Mark]:
    """`<|box_start|>…<|box_end|>`."""
    for m in _TOKENS.finditer(text):
        yield Mark(m.start(), m.end(), m.start(1), m.end(1), TOKENS, "box_start", "box")


def tags(text: str) -> Iterator[Mark]:
    """`<name>…</name>` without a tag inside; with attributes, which are kept, only what lies between."""
    for m in _TAG.finditer(text):
        first, last = m.span(3)
        start, end = m.span() if m.group(2) is None else (first, last)
        kind = TAG if m.group(2) is None else ATTRIBUTES
        yield Mark(start, end, first, last, kind, m.group(1), _of(m.group(1)))


def attributes(text: str) -> Iterator[Mark]:
    """`<name x1="20" …/>`."""
    for m in _ATTRIBUTES.finditer(text):
        yield Mark(m.start(), m.end(), m.start(2), m.end(2), ATTRIBUTES, m.group(1), _of(m.group(1)))


def keys(text: str) -> Iterator[Mark]:
    """`"bbox": […]` of JSON, with a list, an object or a string of numbers."""
    for m in _KEY.finditer(text):
        place = _value(text, m.end())
        if place is not None:
            end = place[1] + (text[place[0] - 1] in "\"'" and place[0] > m.end())
            of = "point" if _POINT.fullmatch(m.group(2)) else "box"
            yield Mark(m.start(), end, *place, KEY, m.group(2), of)


def _value(text: str, at: int) -> tuple[int, int] | None:
    """Where the value that begins at `at` holds numbers; None if it is none of a box."""
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        return quoted.span(2)
    numeric = _NUMERIC.match(text, at)
    if numeric is None or text[at] not in "[({":
        return None
    depth, end = 0, None
    for bracket in _BRACKET.finditer(text, at, numeric.end()):
        depth += 1 if bracket.group() in "[({" else -1
        if depth == 0:
            end = bracket.end()
            if _MORE.match(text, end, numeric.end()) is None:
                break
    return None if end is None else (at, end)


def _of(name: str) -> str:
    if _BOX.search(name):
        return "box"
    if _POINT.fullmatch(name):
        return "point"
    if name.lower() in _LAYOUT:
        return "layout"
    return "place" if _PLACE.search(name) else ""


def how_many(inside: str) -> int:
    """How many numbers stand in a text."""
    return len(re.findall(NUMBER, inside))
