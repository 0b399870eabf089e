"""The forms in which models write boxes. A model's file names the one that is read (`box_tag`); others are counted.

- A tag's name: `<bbox>[x1,y1,x2,y2]</bbox>` (the paper's; TreeVGR: "box").
- "bbox_2d": Qwen's JSON, `{"bbox_2d": [x1, y1, x2, y2], "label": …}`.
- "box_start": Qwen2-VL's tokens, `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`. Engines that drop special tokens never return them.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

BBOX_2D, BOX_START, BARE, LOC = "bbox_2d", "box_start", "bare", "loc"
_LONGEST = 200  # characters inside; longer text is not a box
_N = r"\s*[+-]?[0-9]+(?:\.[0-9]*)?\s*"
_POINTS = re.compile(rf"\s*\(({_N},{_N})\)\s*,?\s*\(({_N},{_N})\)\s*")
_PATTERNS = {
    BBOX_2D: rf"[\"']bbox_2d[\"']\s*:\s*(\[[^\[\]]{{0,{_LONGEST}}}\])",
    BOX_START: rf"<\|box_start\|>([^<]{{0,{_LONGEST}}})<\|box_end\|>",
}
_OPENINGS = {BBOX_2D: r"[\"']bbox_2d[\"']\s*:", BOX_START: r"<\|box_start\|>"}
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
    return {BBOX_2D: ('"bbox_2d"',), BOX_START: ("<|box_start|>", "<|box_end|>")}.get(form, (f"<{form}>", f"</{form}>"))


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


def unread(text: str, form: str) -> Counter[str]:
    """How many boxes of `text` are in other forms than `form`, by form.

    "bare" is four numbers in brackets alone, "loc" four `<loc…>`.
    """
    counts: Counter[str] = Counter()
    if not any(sign in text for sign in "[(<"):
        return counts
    rest = pattern(form).sub(" ", text)
    if form not in _PATTERNS:  # a box that is opened and not closed is a dropped box
        rest = re.sub(rf"<{re.escape(form)}>[^<]{{0,{_LONGEST}}}", " ", rest)
    if not (_MAY_BE_BOX.search(rest) or "bbox_2d" in rest or "box_start" in rest or "<loc" in rest):
        return counts
    for other in (BBOX_2D, BOX_START):
        if other != form:
            rest, count = pattern(other).subn(" ", rest)
            counts[other] += count
    counts.update(match.group(1) for match in _TAGGED.finditer(rest) if match.group(1) != form)
    counts[LOC] += len(_LOCATIONS.findall(rest))
    counts[BARE] += len(_BARE.findall(_TAGGED.sub(" ", rest)))
    return +counts
