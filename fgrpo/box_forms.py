"""The forms in which models write boxes, and points. A model's file names its own (`box_tag`).

Training reads the policy's own form alone. Judges get the boxes of every form in their frame, and evaluation scores them
(`written`); what stands in a model's text is in one frame, its `box_frame`, whatever its form.

- A tag's name: `<bbox>[x1,y1,x2,y2]</bbox>` (the paper's; TreeVGR: "box").
- "bbox_2d": Qwen's JSON, `{"bbox_2d": [x1, y1, x2, y2], "label": …}`.
- "box_start": Qwen2-VL's tokens, `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`. Engines that drop special tokens never return them.
- "point": pairs (x, y), as ViGoRL writes them; no boxes. Qwen's JSON `"point_2d": [x, y]` is a point for every model.
- Four numbers in brackets alone ("bare"), or in a tag of another name, are boxes too; four `<loc…>` are counted alone.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

BBOX_2D, BOX_START, BARE, LOC = "bbox_2d", "box_start", "bare", "loc"
POINT, POINT_2D = "point", "point_2d"
POINTS = (POINT, POINT_2D)
_LONGEST = 200  # characters inside; longer text is not a box
_N = r"\s*[+-]?[0-9]+(?:\.[0-9]*)?\s*"
_POINTS = re.compile(rf"\s*\(({_N},{_N})\)\s*,?\s*\(({_N},{_N})\)\s*")
_NUMBERS = re.compile(_N)
_PATTERNS = {
    POINT: rf"([\[(]{_N},{_N}[\])])",
    POINT_2D: rf"[\"']point_2d[\"']\s*:\s*(\[{_N},{_N}\])",
    BBOX_2D: rf"[\"']bbox_2d[\"']\s*:\s*(\[[^\[\]]{{0,{_LONGEST}}}\])",
    BOX_START: rf"<\|box_start\|>([^<]{{0,{_LONGEST}}})<\|box_end\|>",
}
_OPENINGS = {POINT: r"(?!)", BBOX_2D: r"[\"']bbox_2d[\"']\s*:", BOX_START: r"<\|box_start\|>"}
_BETWEEN = r"[,;\s]"
_TAGGED = re.compile(
    rf"<(\w{{1,12}})>\s*[\[(]{{0,2}}{_N}{_BETWEEN}{_N}{_BETWEEN}{_N}{_BETWEEN}{_N}[\])]{{0,2}}\s*</\1>"
)
_MAY_BE_BOX = re.compile(r"[>\[(]\s*[\[(]{0,2}\s*[+-]?[0-9]")  # how a tagged or a bare box begins
_LOCATIONS = re.compile(r"(?:<loc_?\d{1,4}>\s*){4}")
_BARE = re.compile(rf"[\[(]{_N},{_N},{_N},{_N}[\])]")


@lru_cache(maxsize=16)
def pattern(form: str) -> re.Pattern[str]:
    """Boxes written in a form; group 1 is what stands inside."""
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


def numbers(inside: str) -> str:
    """`inside` with the two points of "box_start" as four numbers; other text stays."""
    points = _POINTS.fullmatch(inside)
    return f"[{points.group(1)},{points.group(2)}]" if points else inside


class Written(NamedTuple):
    """One box or point of a text: its place, its form, and what stands inside; `inside` may be no valid box."""

    start: int
    end: int
    form: str
    inside: str


def written(text: str, form: str) -> list[Written]:
    """Boxes and points of `text` in `form` and in every other form, in order. Four `<loc…>` are none of them.

    `inside` is what a text shows instead: as written in `form`, else four (or two) numbers in brackets. What is opened in
    `form` and not closed is left out, since it is a dropped box.
    """
    if not any(sign in text for sign in "[(<"):
        return []
    found = [Written(m.start(), m.end(), form, m.group(1)) for m in pattern(form).finditer(text)]
    rest = _masked(pattern(form), text)
    if form not in _PATTERNS:  # a box that is opened and not closed is a dropped box
        rest = _masked(re.compile(rf"<{re.escape(form)}>[^<]{{0,{_LONGEST}}}"), rest)
    if not (_MAY_BE_BOX.search(rest) or "bbox_2d" in rest or "box_start" in rest or "point_2d" in rest):
        return found
    for other in (BBOX_2D, BOX_START, POINT_2D):
        if other != form:
            found += [Written(m.start(), m.end(), other, numbers(m.group(1))) for m in pattern(other).finditer(rest)]
            rest = _masked(pattern(other), rest)
    for match in _TAGGED.finditer(rest):
        if match.group(1) != form:
            found.append(Written(match.start(), match.end(), match.group(1), _listed(match.group(), match.group(1))))
    rest = _masked(_TAGGED, rest)
    found += [Written(m.start(), m.end(), BARE, _listed(m.group())) for m in _BARE.finditer(rest)]
    return sorted(found)


def _masked(what: re.Pattern[str], text: str) -> str:
    """`text` with each match replaced by as many characters that are part of no box."""
    return what.sub(lambda match: "\0" * len(match.group()), text)


def _listed(text: str, tag: str = "") -> str:
    """The four numbers of a box in brackets: `[x1,y1,x2,y2]`."""
    inside = text[len(tag) + 2 : -len(tag) - 3] if tag else text
    return "[" + ",".join(number.strip() for number in _NUMBERS.findall(inside)) + "]"


def others(text: str, form: str) -> Counter[str]:
    """How many boxes of `text` are in other forms than `form` and can be read, by form."""
    return Counter(one.form for one in written(text, form) if one.form not in (form, *POINTS))


def unread(text: str, form: str) -> Counter[str]:
    """How many boxes of `text` are in other forms than `form`, by form.

    "bare" is four numbers in brackets alone, "loc" four `<loc…>`.
    """
    return others(text, form) + locations(text)


def locations(text: str) -> Counter[str]:
    """How many boxes of four `<loc…>` a text has. Nothing reads them: their frame is a tokenizer's own."""
    return +Counter({LOC: len(_LOCATIONS.findall(text)) if "<loc" in text else 0})
