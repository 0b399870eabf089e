"""The forms in which models write boxes, and points. A model's file names its own (`box_tag`).

Training reads the policy's own form alone, letter for letter (`pattern`). Judges get the boxes of every form in their frame, and
evaluation scores them (`written`); what stands in a model's text is in one frame, its `box_frame`, whatever its form.

- A tag's name: `<bbox>[x1,y1,x2,y2]</bbox>` (the paper's; TreeVGR: "box").
- "bbox_2d": Qwen's JSON, `{"bbox_2d": [x1, y1, x2, y2], "label": …}`, or with two points, `[[x1, y1], [x2, y2]]`.
- "box_start": Qwen2-VL's tokens, `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`. Engines that drop special tokens never return them.
- "point": pairs (x, y), as ViGoRL writes them; no boxes. JSON (`"point_2d": [x, y]`) and tags named like a point are points for
  every model.
- "bare": numbers that nothing but brackets or their names mark (`fgrpo.box_shapes`), where `fgrpo.box_context` takes them for a
  box, and JSON with another key that names a box. Gemini's `"box_2d"` is (y1, x1, y2, x2).
- Percentages are units of the image whatever the model's frame; four `<loc…>` are counted alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from fgrpo import box_marks
from fgrpo.box_context import fits, is_box
from fgrpo.box_marks import Mark
from fgrpo.box_numbers import plain
from fgrpo.box_shapes import Shape, inside, rows_first, shapes
from fgrpo.types import Frame

BBOX_2D, BOX_START, BARE, LOC = "bbox_2d", "box_start", "bare", "loc"
POINT, POINT_2D = "point", "point_2d"
POINTS = (POINT, POINT_2D)
_LONGEST = 200  # characters inside of a policy's own box; longer text is not a box
_N = r"\s*[+-]?[0-9]+(?:\.[0-9]*)?\s*"
_POINTS = re.compile(rf"\s*\(({_N},{_N})\)\s*,?\s*\(({_N},{_N})\)\s*")
_PAIRS = re.compile(rf"\[\s*\[({_N},{_N})\]\s*,\s*\[({_N},{_N})\]\s*\]")
_FEW = r"\[[^\[\],]{0,40}(?:,[^\[\],]{0,40}){0,2}\]"  # up to three numbers; a list of four is a box of its own
_PATTERNS = {
    POINT: rf"([\[(]{_N},{_N}[\])])",
    BBOX_2D: rf"[\"']bbox_2d[\"']\s*:\s*(\[[^\[\]]{{0,{_LONGEST}}}\]|\[\s*{_FEW}(?:\s*,\s*{_FEW}){{0,8}}\s*\])",
    BOX_START: rf"<\|box_start\|>([^<]{{0,{_LONGEST}}})<\|box_end\|>",
}
_OPENINGS = {POINT: r"(?!)", BBOX_2D: r"[\"']bbox_2d[\"']\s*:", BOX_START: r"<\|box_start\|>"}

_MAY_HOLD = re.compile(r"[\[({<=:]")
_ROWS_FIRST = "box_2d"  # Gemini's
_LOCATIONS = re.compile(r"(?:<loc_?\d{1,4}>\s*){4}")
_OVER_LINES = re.compile(  # a line that may end inside a group of numbers
    r"[\[({,;:][ \t\r]*+\n|<\w{1,40}>[ \t\r]*+\n|[\[({]\s*+[\d.+-]++[ \t\r]*+\n|[:=][ \t]*+[\d.+-]++[ \t\r]*+\n|\n[ \t]*+[\])}<]"
)
# numbers in brackets, even if cut off
_LIST = re.compile(r"[\[({][\s\d.,;+\-%\"'eE]{1,2000}+(?:[\])}]|\Z)")


@lru_cache(maxsize=16)
def pattern(form: str) -> re.Pattern[str]:
    """Boxes written in a form, as training reads them; group 1 is what stands inside."""
    tag = re.escape(form)
    return re.compile(_PATTERNS.get(form, rf"<{tag}>([^<]{{0,{_LONGEST}}})</{tag}>"))


def marks(form: str) -> tuple[str, ...]:
    """What a model must be able to write around a box of this form."""
    return {POINT: ("(", ")"), BBOX_2D: ('"bbox_2d"',), BOX_START: ("<|box_start|>", "<|box_end|>")}.get(
        form, (f"<{form}>", f"</{form}>")
    )


def example(form: str) -> str:
    """How a prompt shows a box of this form."""
    shown = {BBOX_2D: '{"bbox_2d": [x1, y1, x2, y2]}', BOX_START: "<|box_start|>(x1,y1),(x2,y2)<|box_end|>"}
    return shown.get(form, f"<{form}>[x1,y1,x2,y2]</{form}>")


def opened(text: str, form: str) -> int:
    """How many boxes `text` begins in a form, valid or not."""
    return len(re.findall(_OPENINGS[form], text)) if form in _OPENINGS else text.count(f"<{form}>")


def numbers(inside: str, form: str = "") -> str:
    """`inside` with two points, as `form` writes them, as four numbers; other text stays."""
    points = (_PAIRS if form == BBOX_2D and inside.startswith("[") else _POINTS).fullmatch(inside)
    return f"[{points.group(1)},{points.group(2)}]" if points else inside


class Written(NamedTuple):
    """One box or point of a text.

    Attributes:
        start, end: its place, with what marks it.
        form: BARE, BBOX_2D, BOX_START, POINT, POINT_2D, or a tag's name.
        inside: what a text shows instead, in the text's own frame.
        numbers: four of a box, two of a point; () for what is opened as a box and is none.
        frame: "unit" for percentages; None is the frame of the text.
        is_first: whether its mark begins with it: a mark may hold several boxes.
    """

    start: int
    end: int
    form: str
    inside: str
    numbers: tuple[float, ...] = ()
    frame: Frame | None = None
    is_first: bool = True


def written(text: str, form: str, frame: Frame | None = None, sizes: Sequence[tuple[int, int]] = ()) -> list[Written]:
    """Boxes and points of `text` in `form` and in every other form, in order. Four `<loc…>` are none of them.

    What is opened in `form` and not closed is left out, since it is a dropped box.

    Args:
        text: of a model.
        form: the model's own.
        frame: of its numbers, which tells boxes without a mark from other numbers; None if it is not known.
        sizes: (width, height) of the images in pixels of `frame`, if it is one of pixels; empty if unknown.
    """
    rest = plain(text)
    if not _MAY_HOLD.search(rest):
        return []
    found: list[Written] = []
    for marks_in in (box_marks.tokens, box_marks.tags, box_marks.attributes, box_marks.keys):
        places = []
        for mark in marks_in(rest):
            held = list(_of_mark(text, rest, mark, form, frame, sizes))
            found += held
            if held or (mark.of in ("", "place") and inside(rest[mark.first : mark.last])):
                places.append((mark.start, mark.end))
        rest = _masked(rest, places)
    if form not in _PATTERNS:
        unclosed = re.compile(rf"<{re.escape(form)}>[^<]{{0,{_LONGEST}}}")
        rest = _masked(rest, (m.span() for m in unclosed.finditer(rest)))
    for shape in shapes(rest, points=form == POINT):
        one = _of_shape(shape, POINT if len(shape.numbers) == 2 else BARE)
        if shape.is_loose or not one.numbers or (one.form == POINT and form != POINT):
            continue
        if is_box(rest, one.start, one.end, one.numbers, one.frame or frame, sizes):
            is_raw = shape.is_plain or one.form == POINT
            found.append(one._replace(inside=text[one.start : one.end]) if is_raw else one)
    return sorted(found, key=lambda one: one.start)


def _of_mark(
    text: str, rest: str, mark: Mark, form: str, frame: Frame | None, sizes: Sequence[tuple[int, int]]
) -> Iterator[Written]:
    """The boxes or points in a mark; nothing if it holds something else."""
    named = _form_of(mark)
    is_own = named == form != BARE
    is_point = mark.of == "point" and (not is_own or form in POINTS)
    content = rest[mark.first : mark.last]
    if not is_own and mark.of in ("", "layout"):
        return
    held = inside(content, is_point)
    if mark.kind == box_marks.KEY and not (held or box_marks.begins_with_number(content)):
        return  # "none", []
    if mark.name == _ROWS_FIRST and mark.kind == box_marks.KEY and ":" not in content:
        held = [rows_first(shape) for shape in held]
    size = 2 if is_point else 4
    read = [_of_shape(shape, named) for shape in held if len(shape.numbers) == size]
    if mark.of == "place" and not is_own and not all(fits(one.numbers, one.frame or frame, sizes) for one in read):
        return
    if not read:
        is_broken = mark.of == "box" and box_marks.begins_with_number(content) and box_marks.how_many(content) > 2
        if is_own or (is_broken and mark.kind != box_marks.ATTRIBUTES):
            yield Written(mark.start, mark.end, named, text[mark.first : mark.last])
        return
    for n, shape in enumerate(held):
        start = mark.start if n == 0 else mark.first + shape.start
        end = mark.end if n == len(held) - 1 else mark.first + shape.end
        one = _of_shape(shape, named)
        if len(one.numbers) != size:
            one = one._replace(inside=text[mark.first + shape.start : mark.first + shape.end], numbers=())
        elif is_own and shape.is_plain and len(held) == 1:
            one = one._replace(inside=text[mark.first : mark.last])
        yield one._replace(start=start, end=end, is_first=n == 0)


def _form_of(mark: Mark) -> str:
    if mark.of == "point":
        return POINT_2D if mark.kind == box_marks.KEY else POINT
    if mark.kind == box_marks.KEY:
        return BBOX_2D if mark.name.lower() == BBOX_2D else BARE
    is_other = mark.kind == box_marks.ATTRIBUTES or (mark.kind == box_marks.TAG and mark.name in _PATTERNS)
    return BARE if is_other else mark.name


def _of_shape(shape: Shape, form: str) -> Written:
    if not shape.is_percent:
        return Written(shape.start, shape.end, form, shape.shown, shape.numbers)
    return Written(shape.start, shape.end, form, shape.shown, tuple(v / 100 for v in shape.numbers), "unit")


def _masked(text: str, places: Iterable[tuple[int, int]]) -> str:
    """`text` with as many characters that are part of no box at each of the places, which are in order."""
    pieces, at = [], 0
    for start, end in places:
        pieces += [text[at:start], "\0" * (end - start)]
        at = end
    return "".join([*pieces, text[at:]])


def without_marks(text: str) -> str:
    """`text` with its boxes and points out of their tags and tokens, as written."""
    at_plain = plain(text)
    for marks_in in (box_marks.tokens, box_marks.tags):
        pieces, at = [], 0
        for mark in marks_in(at_plain):
            if mark.of in ("box", "place", "point") and box_marks.begins_with_number(at_plain[mark.first : mark.last]):
                pieces += [text[at : mark.start], text[mark.first : mark.last]]
                at = mark.end
        text = "".join([*pieces, text[at:]])
        at_plain = plain(text)
    return text


def in_one_line(text: str) -> str:
    """`text` with each group of numbers, tag and JSON value of a box in one line."""
    if not _OVER_LINES.search(text):
        return text
    at_plain = plain(text)
    marked = (m for marks_in in (box_marks.tokens, box_marks.tags, box_marks.keys) for m in marks_in(at_plain))
    places = [(m.start, m.end) for m in marked if m.of not in ("", "layout") and inside(at_plain[m.first : m.last])]
    places += [(shape.start, shape.end) for shape in shapes(at_plain)]
    places += [m.span() for m in _LIST.finditer(at_plain)]
    pieces, at = [], 0
    for start, end in sorted(places, key=lambda place: (place[0], -place[1])):
        if start >= at and "\n" in text[start:end]:
            pieces += [text[at:start], " ".join(text[start:end].split())]
            at = end
    return "".join([*pieces, text[at:]])


def others(text: str, form: str, frame: Frame | None = None, sizes: Sequence[tuple[int, int]] = ()) -> Counter[str]:
    """How many boxes of `text` are in other forms than `form` and can be read, by form."""
    return Counter(one.form for one in written(text, form, frame, sizes) if one.form not in (form, *POINTS))


def unread(text: str, form: str, frame: Frame | None = None) -> Counter[str]:
    """How many boxes of `text` are in other forms than `form`, by form.

    "bare" is a box that nothing but brackets marks, or another key of JSON, "loc" four `<loc…>`.
    """
    return others(text, form, frame) + locations(text)


def has_other_form(text: str, form: str) -> bool:
    """Whether `text` has a box or a point outside the form `form`; two numbers in brackets are a point."""
    rest = pattern(form).sub(" ", text)
    found = (one for own in (form, POINT) for one in written(rest, own))
    return any(one.form != form for one in found) or bool(locations(rest))


def locations(text: str) -> Counter[str]:
    """How many boxes of four `<loc…>` a text has. Nothing reads them: their frame is a tokenizer's own."""
    return +Counter({LOC: len(_LOCATIONS.findall(text)) if "<loc" in text else 0})
