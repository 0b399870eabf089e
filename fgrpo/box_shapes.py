"""What numbers stand for: a box by its corners, a polygon (its hull), named numbers, or a point."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from fgrpo.box_numbers import NUMBER, Group, Number, groups, without_brackets, wrapped

_LISTED = re.compile(r"\s*+[,;]?\s*+")
_PAIRED = re.compile(r"\s*+[,;]\s*+|[ \t]*+")  # a new line without a comma is another point
_CORNER = r"(?:the )?[\"']?(?:bottom|lower)[ _-]?right(?:[ _-]?corner)?[\"']?(?: is| at|\s?[:=])*"
_TO = re.compile(
    rf"\s*(?:[,;]\s*)?(?:to|and to|-->?|[-–—~→/]|->|=>|至|到|(?:and|to|[,;])\s+{_CORNER}|{_CORNER})\s*", re.IGNORECASE
)
_FARTHEST = 40  # characters between two corners
_LEAST_AREA = 0.25  # of a polygon's hull; a line of points has less
_REST = re.compile(r"(?:[\s,;\[\](){}\"'\\]|and\b)*+")
_KEY = r"[xy]_?(?:min|max|tl|br|[0-3])|left|top|right|bottom|upper|lower|width|height|[xywh]"
_ENTRY = re.compile(
    rf"[\"']?(?<![\w.])({_KEY})[\"']?\s*+[:=]\s*+[\"']?({NUMBER})(?:\s?(?:px|(%)))?(?!\w)[\"']?", re.IGNORECASE
)
_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("xtl", "ytl", "xbr", "ybr"),
    ("left", "top", "right", "bottom"),
    ("left", "upper", "right", "lower"),
)
_SIZED = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
_PLACES = {frozenset(names): (names, names in _SIZED) for names in (*_CORNERS, *_SIZED)}


class Shape(NamedTuple):
    """A box or a point of a text, at text[start:end].

    Attributes:
        numbers: four of a box, two of a point; () for numbers that are neither.
        shown: the same as a text, in brackets.
        is_percent: whether the numbers are percentages of the image.
        is_plain: whether they are written as four in order.
        is_loose: whether they may as well be several points: no bracket joins them, or they are not corners in order.
    """

    start: int
    end: int
    numbers: tuple[float, ...]
    shown: str = ""
    is_percent: bool = False
    is_plain: bool = False
    is_loose: bool = False


def shapes(text: str, points: bool = False) -> list[Shape]:
    """All boxes and points of a plain text that stand in brackets or are named numbers, in order.

    Args:
        points: whether each pair is a point; otherwise two pairs that follow each other are a box, and several a polygon.
    """
    found = [*_of_groups(text, points), *_named(text, points)]
    return sorted(found)


def inside(text: str, points: bool = False) -> list[Shape]:
    """What a plain text says that holds boxes and no more (a tag, a JSON value); [] if it says more, or anything else."""
    listed = without_brackets(text)
    if listed is not None:
        return list(_of_group(text, listed, points))
    found = shapes(text, points)
    at = 0
    for shape in [*found, Shape(len(text), len(text), ())]:
        if _REST.fullmatch(text, at, max(at, shape.start)) is None:
            return []
        at = shape.end
    return found


def rows_first(shape: Shape) -> Shape:
    """A box that is written as (y1, x1, y2, x2)."""
    if len(shape.numbers) != 4:
        return shape
    (y1, x1, y2, x2), texts = shape.numbers, shape.shown.strip("[]").split(",")
    shown = "[" + ",".join(texts[i].strip() for i in (1, 0, 3, 2)) + "]"
    return shape._replace(numbers=(x1, y1, x2, y2), shown=shown, is_plain=False)


def _of_groups(text: str, points: bool) -> Iterator[Shape]:
    found = groups(text)
    at = 0
    while at < len(found):
        last = at + 1
        if len(found[at].numbers) == 2 and not points:
            last = _chain(text, found, at)
        if last - at > 1:
            yield from _of_pairs(text, found[at:last])
        else:
            yield from _of_group(text, found[at], points)
        at = last


def _chain(text: str, found: Sequence[Group], first: int) -> int:
    """Where the pairs end that follow each other from `first` on."""
    last = first + 1
    while last < len(found) and _are_joined(text, found[last - 1], found[last], _PAIRED):
        last += 1
    if last == first + 1 and last < len(found) and _are_joined(text, found[first], found[last], _TO):
        last += 1
    return last


def _are_joined(text: str, one: Group, other: Group, joint: re.Pattern[str]) -> bool:
    if len(other.numbers) != 2 or one.is_percent != other.is_percent:
        return False
    is_near = joint is _PAIRED or other.start - one.end <= _FARTHEST
    return is_near and joint.fullmatch(text, one.end, other.start) is not None


def _of_pairs(text: str, pairs: Sequence[Group]) -> Iterator[Shape]:
    """Two corners, or a polygon's, or two by two the corners of several boxes; several points if they are none of them."""
    start, end = pairs[0].start, pairs[-1].end
    around = wrapped(text, start, end)
    corners = [(pair.numbers[0], pair.numbers[1]) for pair in pairs]
    if len(pairs) > 2 and _are_boxes(corners):
        for one, other in zip(pairs[::2], pairs[1::2], strict=True):
            both = [(pair.numbers[0], pair.numbers[1]) for pair in (one, other)]
            yield _box(one.start, other.end, both, one.is_percent)._replace(is_loose=True)
        return
    if len(pairs) == 2 or _is_polygon(corners):
        start, end = around or (start, end)
        yield _box(start, end, corners, pairs[0].is_percent, is_loose=around is None and len(pairs) < 4)
        return
    for pair in pairs:
        yield _point(pair)


def _of_group(text: str, group: Group, points: bool) -> Iterator[Shape]:
    """Two, four, five (the fifth is a score) or eight numbers (four corners)."""
    numbers, is_percent = group.numbers, group.is_percent
    if len(numbers) == 2:
        yield _point(group)
        return
    start, end = group.start, group.end
    while (around := wrapped(text, start, end)) and text[around[0]] == text[start] and text[start] in "[({":
        start, end = around
    corners = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) == 8 and _is_polygon(corners):
        yield _box(start, end, corners, is_percent)
    elif len(numbers) == 4 or (len(numbers) == 5 and 0 <= numbers[4][0] <= 1):
        yield _box(start, end, corners[:2], is_percent, is_plain=len(numbers) == 4)
    else:
        yield Shape(start, end, ())


def _box(
    start: int,
    end: int,
    corners: Sequence[tuple[Number, Number]],
    is_percent: bool,
    is_plain: bool = False,
    is_loose: bool = False,
) -> Shape:
    """The smallest box around corners, in whatever order they are; no numbers if it has no size."""
    xs, ys = sorted(x for x, _ in corners), sorted(y for _, y in corners)
    in_order = (xs[0], ys[0], xs[-1], ys[-1])
    x1, y1, x2, y2 = (value for value, _ in in_order)
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        return Shape(start, end, ())
    written = tuple(value for corner in corners for value in corner)
    shown = "[" + ",".join(text for _, text in in_order) + "]"
    is_loose = is_loose and written not in (in_order, (*in_order[2:], *in_order[:2]))
    return Shape(start, end, (x1, y1, x2, y2), shown, is_percent, is_plain and written == in_order, is_loose)


def _point(pair: Group) -> Shape:
    values = tuple(value for value, _ in pair.numbers)
    if not all(map(math.isfinite, values)):
        return Shape(pair.start, pair.end, ())
    shown = "[" + ",".join(text for _, text in pair.numbers) + "]"
    return Shape(pair.start, pair.end, values, shown, pair.is_percent)


def _are_boxes(corners: Sequence[tuple[Number, Number]]) -> bool:
    """Whether each second corner lies right of the one before and below it, which is never so around a polygon."""
    pairs = zip(corners[::2], corners[1::2], strict=False)
    return len(corners) % 2 == 0 and all(a[0][0] < b[0][0] and a[1][0] < b[1][0] for a, b in pairs)


def _is_polygon(corners: Sequence[tuple[Number, Number]]) -> bool:
    """Whether at least three corners, in their order, enclose a good part of the box around them."""
    points = [(x[0], y[0]) for x, y in corners]
    if len(points) < 3:
        return False
    following = [*points[1:], points[0]]
    area = abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True))) / 2
    (left, *_, right), (top, *_, bottom) = sorted(x for x, _ in points), sorted(y for _, y in points)
    return area > 0 and area >= _LEAST_AREA * (right - left) * (bottom - top)


def _named(text: str, points: bool) -> Iterator[Shape]:
    """Boxes by the names of their numbers: `x1=20, y1=10, x2=100, y2=50`, `"left": 20, …`; with `points` also `x=20, y=10`."""
    found = list(_ENTRY.finditer(text)) if "=" in text or ":" in text else []
    at = 0
    while at < len(found):
        for size in (4, 2) if points else (4,):
            entries = found[at : at + size]
            shape = _of_names(text, entries) if len(entries) == size and _follow(text, entries) else None
            if shape is not None:
                yield shape
                at += size - 1
                break
        at += 1


def _follow(text: str, entries: Sequence[re.Match[str]]) -> bool:
    return all(_LISTED.fullmatch(text, a.end(), b.start()) for a, b in pairwise(entries))


def _of_names(text: str, entries: Sequence[re.Match[str]]) -> Shape | None:
    units = {bool(entry.group(3)) for entry in entries}
    values = {
        entry.group(1).lower().replace("_", ""): (float(entry.group(2)), entry.group(2) + (entry.group(3) or ""))
        for entry in entries
    }
    start, end = entries[0].start(), entries[-1].end()
    around = wrapped(text, start, end)
    group = Group(*(around or (start, end)), tuple(values.values()), units == {True})
    if len(units) > 1:
        return None
    if tuple(values) == ("x", "y"):
        return _point(group)
    names, is_sized = _PLACES.get(frozenset(values), ((), False))
    if not names:
        return None
    x1, y1, x2, y2 = (values[name] for name in names)
    if is_sized:
        x2, y2 = (_sum(x1, x2), _sum(y1, y2))
    return _box(group.start, group.end, [(x1, y1), (x2, y2)], group.is_percent)


def _sum(start: Number, size: Number) -> Number:
    value = start[0] + size[0]
    return value, f"{value:g}" + ("%" if size[1].endswith("%") else "")
