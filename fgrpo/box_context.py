"""Whether numbers that nothing marks as a box are one: by the size of the image, and by the words around them.

Numbers are a box only if they fit in an image (or may stick out by 1% of a side), and if both sides have at least 1% of the
image's, and 8 pixels. A point lies in an image, and not as near to its upper left corner. A word that lists something (counts,
options, values, years, colours) before the numbers, or a unit or a plural after them, says that they are neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgrpo.types import Frame

SLACK = LEAST = 0.01  # shares of an image's side
LEAST_PIXELS = 8
_RELATIVE: dict[Frame, float] = {"unit": 1.0, "thousand": 1000.0}

_NEAR = 90  # characters before the numbers that are read
_WORDS_NEAR = 7
_BREAK = re.compile(r"[.!?;,\n\0\])}\d]")
_WORD = re.compile(r"[^\W\d_]+")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_LINKS = _words(
    "is are was were be being as like of the a an its their this these each all per code codes both namely here given shown listed "
    "shape"
)
_ARTICLES = _words("the a an this that one its his her")
_NO_THING = _words("of with and or in on for from by see saw show hold carry need sell store")
_COPULAS = _words("is are was were")
_PLACES = _words(
    "at around near within inside box boxes bbox bounding region area roi location located position positioned rectangle "
    "coordinates coordinate coords corner corners crop zoom xyxy"
)
_LISTS = _words(  # what no picture shows: before the numbers but for links, or in their clause with "are", ":" or "="
    "counts amounts totals sums quantities options choices values series lists arrays sequences vectors tuples intervals ranges "
    "years months dates days hours weeks ages prices costs scores ratings probabilities percentages ratios rates weights heights "
    "widths lengths sizes speeds distances depths temperatures angles colors colours indices indexes ids dimensions quaternions "
    "factors multiples primes integers populations sales grades frequencies shares proportions fractions revenue revenues profit "
    "profits income incomes earnings population readings measurements results outputs inputs coefficients parameters elements "
    "observations statistics seconds minutes timestamps paddings strides percentage probability quaternion rgb rgba argb bgr bgra hsv hsl hsla cmyk tensor tensors"
)
_MAY_LIST = _words(  # right before the numbers but for links, or in their clause with "are" before the numbers
    "count option choice padding stride margin margins routes exits channels episodes questions exercises trials versions rooms color colour fill rotation interval range sequence series "
    "vector array list tuple matrix set data dataset value year month date ratio score size resolution dimension dimensions "
    "index mean median sum total average max min section chapter equation step numbers steps lines pages rows columns cells "
    "chapters pictures images figures panels photos tables ticks bins bars votes digits terms marks levels hold holds held "
    "holding have has had contain contains containing contained sold sell sells bought buy buys scored weigh weighs weighed cost "
    "costs equals equal produced produces"
)
_OF_PAIRS = _words("row column page figure cell")  # row (10, 20)
_OF_BOXES = _words("points pairs vertices")  # points (1, 2), (3, 4) are no corners
_UNITS = _words(
    "mm cm m km ft kg g lb oz ml l s ms h hr min mph kmh kwh hz db usd eur people men women children feet inches fish sheep mice "
    "percent dollar euro meter metre"
)
_NOT_PLURAL = _words(  # words in -s after a box that do not say what is counted
    "is was has does goes its his this thus as us yes always perhaps across towards besides regardless whereas plus versus minus "
    "contains shows depicts covers indicates represents encloses appears looks seems lies sits stands includes holds marks captures "
    "corresponds matches overlaps refers belongs displays reveals focuses touches faces spans surrounds bounds highlights suggests "
    "confirms identifies gives denotes describes features encompasses outlines reads says wears comes uses points turns moves "
    "walks runs rides hangs rests leans extends starts begins ends occupies locates intersects fits remains stays takes makes "
    "carries leads blocks hides needs tells means implies proves supports falls passes crosses borders follows reaches "
    "comprises demarcates delimits frames pixels coordinates"
)
_LISTED_AFTER = re.compile(r"\s{0,4}(?:are|as|for|respectively are)\s(?:the\s|their\s|its\s)?([a-z]{2,30})\b")
_NEXT_WORD = re.compile(
    r"[ \t]?(?:(?:red|green|blue|yellow|white|black|small|large|big|new|old|different|more|other) )?([A-Za-z]{1,30})\b"
)
_NAME = re.compile(r"[A-Za-z_][\w.]{0,30}\Z")
_FUNCTIONS = (
    _MAY_LIST | _LISTS | _words("f g h p max min avg print len abs mod gcd lcm vec color rotate translate scale")
)
_CJK_BEFORE = re.compile(r"(?:数量|个数|数目|年份|选项|数值|颜色|价格|分数|人数|序列)[是为有分别:\s]{0,6}\Z")
_CJK_AFTER = re.compile(r"\s?[个只辆人元年岁名张本件%°]")


def is_box(
    text: str, start: int, end: int, numbers: Sequence[float], frame: Frame | None, sizes: Sequence[tuple[int, int]]
) -> bool:
    """Whether the four numbers at text[start:end], or the two of a point, can be one of `frame`.

    Args:
        frame: None if it is not known: pixels, or units of the image.
        sizes: (width, height) of the images in pixels of `frame`, if it is one of pixels; empty if unknown.
    """
    return fits(numbers, frame, sizes) and not _lists(text, start, end, len(numbers) == 2)


def fits(numbers: Sequence[float], frame: Frame | None, sizes: Sequence[tuple[int, int]] = ()) -> bool:
    """Whether a box, or a point, lies in an image, and is no smaller than anything that a model points at."""
    if frame is None:
        return fits(numbers, "model") or fits(numbers, "unit")
    if frame in _RELATIVE:
        side = _RELATIVE[frame]
        return _lies_in(numbers, side, side, 0)
    if not sizes:
        return _lies_in(numbers, float("inf"), float("inf"), LEAST_PIXELS)
    return any(_lies_in(numbers, width, height, LEAST_PIXELS) for width, height in sizes)


def _lies_in(numbers: Sequence[float], width: float, height: float, least: float) -> bool:
    x, y, *far = numbers
    right, bottom = far or (x, y)
    is_known = width < float("inf")
    least_x, least_y = (max(least, LEAST * side) if is_known else least for side in (width, height))
    slack_x, slack_y = (SLACK * side if is_known else least for side in (width, height))
    is_inside = x >= -slack_x and y >= -slack_y and right <= width + slack_x and bottom <= height + slack_y
    if not far:
        return is_inside and (x >= least_x or y >= least_y)
    return is_inside and right - x >= least_x and bottom - y >= least_y


def _lists(text: str, start: int, end: int, is_point: bool) -> bool:
    """Whether the words around numbers say that they list something else than coordinates."""
    said = _said_before(text, start, is_point)
    return not said if said is not None else _is_counted(text, start, end)


def _said_before(text: str, start: int, is_point: bool) -> bool | None:
    """Whether what precedes announces a place (True) or a list (False); None if it says neither."""
    before = text[max(0, start - _NEAR) : start]
    name = _NAME.search(before)
    if name is not None:  # f(1, 2, 3, 4)
        word = name.group().lower()
        if any(place in word for place in ("box", "coord", "region", "roi", "rect")):
            return True
        return False if len(word) == 1 or "." in word or "_" in word or word in _FUNCTIONS else None
    if _CJK_BEFORE.search(before):
        return False
    words = _clause(before)
    is_linked, is_stated = True, bool(words) and words[-1] in _COPULAS
    is_told = is_stated or before.rstrip(" \t\n\"'*`").endswith((":", "="))
    may_list = _MAY_LIST | (_OF_PAIRS if is_point else _OF_BOXES)
    for place in range(len(words) - 1, max(-1, len(words) - 1 - _WORDS_NEAR), -1):
        word = words[place]
        if word in _PLACES and is_linked:
            return True
        if (word in _LISTS and (is_linked or is_told)) or (word in may_list and (is_linked or is_stated)):
            return place > 0 and words[place - 1] in _PLACES  # corner points, coordinate values
        is_linked = is_linked and (word in _LINKS or len(word) == 1)  # option B
    return None


def _clause(before: str) -> list[str]:
    """The words of the clause that a text ends in, in lower case."""
    return [word.lower() for word in _WORD.findall(_BREAK.split(before)[-1])]


def _is_counted(text: str, start: int, end: int) -> bool:
    """Whether a unit or the name of what is counted follows, or a word for a list ("are the prices")."""
    after = text[end : end + 60]
    if _CJK_AFTER.match(after):
        return True
    listed = _LISTED_AFTER.match(after)
    if listed is not None and listed.group(1) in _LISTS:
        return True
    follows = _NEXT_WORD.match(after)
    if follows is None:
        return False
    word = follows.group(1)
    if word in _UNITS:
        return True
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "ous"))
    may_be_counted = word.islower() and is_plural and word not in _NOT_PLURAL
    return may_be_counted and not _is_thing(_clause(text[max(0, start - _NEAR) : start]))


def _is_thing(words: Sequence[str]) -> bool:
    """Whether words end in one thing ("the red car"), after which a word in -s is a verb ("honks")."""
    for n, word in enumerate(reversed(words[-5:])):
        if word in _ARTICLES:
            return n > 0
        if word.endswith("s") or word in _COPULAS or word in _NO_THING:
            return False
    return False
