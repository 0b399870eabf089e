"""Boxes: overlap, complete IoU, optimal matching, and exact conversion between frames.

CIoU follows Zheng et al. 2019 ("Distance-IoU loss", Eqs. 7 to 11), the measure of the paper's Eq. 1. The journal version,
which drops the aspect term below IoU 0.5, is not used. `smart_resize` restates transformers' function of that name
(Qwen2.5-VL's image processor), so that rewards and judges need no torch; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from fgrpo.types import Box, Frame

if TYPE_CHECKING:
    BoxLike = Box | Sequence[float]

Size = tuple[int, int]  # (width, height) in pixels

ASPECT_LIMIT = 200  # longest side of an image over its shortest
MIN_INSIDE = 0.5  # minimum share of an annotated box's area inside its image; other boxes are left out
_ASPECT = 4 / math.pi**2  # of CIoU's aspect term


class PixelBounds(NamedTuple):
    """How a processor resizes images: the least and the most pixels of an image, and pixels per image token side."""

    min_pixels: int
    max_pixels: int
    factor: int


def iou(a: BoxLike, b: BoxLike) -> float:
    """Intersection over union, in [0, 1], of two boxes (x1, y1, x2, y2) in one frame; 0 for an empty or reversed box.

    Raises:
        ValueError: a coordinate is not finite.
    """
    return _iou(*_scaled(_numbers(a), _numbers(b)))


def ciou(a: BoxLike, b: BoxLike) -> float:
    """Complete IoU, in (-1.5, 1], of two boxes (x1, y1, x2, y2) in one frame.

    CIoU is IoU minus the squared distance of the centres over the squared diagonal of the enclosing box, minus the aspect
    term. It is 1 for equal boxes that are not empty, symmetric, and independent of the scale.

    Raises:
        ValueError: a coordinate is not finite.
    """
    return _ciou(_measured(_numbers(a)), _measured(_numbers(b)))


def match(pred: Sequence[BoxLike], gt: Sequence[BoxLike]) -> list[tuple[int, int, float]]:
    """The one-to-one assignment of min(#pred, #gt) pairs with the largest sum of CIoU (Kuhn 1955, scipy's solver).

    Returns (index into `pred`, index into `gt`, CIoU) in order of the first index; [] if one side is empty.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not pred or not gt:
        return []
    measured_P, measured_G = ([_measured(_numbers(box)) for box in boxes] for boxes in (pred, gt))
    scores_PG = [[_ciou(p, g) for g in measured_G] for p in measured_P]
    rows, columns = linear_sum_assignment(np.array(scores_PG), maximize=True)
    return [(i, j, scores_PG[i][j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels of the image that the model sees.

    Both are multiples of `factor`, the area lies within the bounds, and the aspect ratio changes as little as possible.
    Halves are rounded to even, as in Python; transformers relies on that.

    Raises:
        ValueError: a side is not positive, or one is more than 200 times the other (transformers refuses it too).
    """
    if min(height, width) <= 0:
        raise ValueError(f"an image has positive sides, got {width}x{height}")
    if max(height, width) / min(height, width) > ASPECT_LIMIT:
        raise ValueError(f"an image of {width}x{height} is too narrow: the limit is {ASPECT_LIMIT} to 1")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


@lru_cache(maxsize=65536)
def model_size(original: Size, min_pixels: int, max_pixels: int, factor: int) -> Size:
    """(width, height) of an image of `original` (width, height) as the model sees it.

    The last three arguments are a processor's `PixelBounds`: `model_size(size, *bounds)`.

    Raises:
        ValueError: as `smart_resize`.
    """
    height, width = smart_resize(original[1], original[0], factor, min_pixels, max_pixels)
    return width, height


def convert(box: Box, to: Frame, original_size: Size, model_size: Size) -> Box:
    """`box` in the frame `to`; not rounded, so that converting back gives the same box up to float precision.

    Args:
        box: a box in any frame.
        to: the target frame.
        original_size: (width, height) of the image file.
        model_size: (width, height) after `smart_resize`.
    """
    if box.frame == to:
        return box
    extents: dict[Frame, tuple[float, float]] = {
        "original": original_size,
        "model": model_size,
        "unit": (1, 1),
        "thousand": (1000, 1000),
    }
    (from_w, from_h), (to_w, to_h) = extents[box.frame], extents[to]
    return Box(box.x1 * to_w / from_w, box.y1 * to_h / from_h, box.x2 * to_w / from_w, box.y2 * to_h / from_h, to)


def box_of(numbers: Any, *, unit_allowed: bool = False) -> Box | None:
    """An annotated box from four numbers in original pixels, or None if unreadable.

    With `unit_allowed`, coordinates below 2 are in units of the image (0 to 1). Values slightly above 1 belong to boxes that
    exceed the image: a box in pixels does not end before the second pixel.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in numbers)
    except (TypeError, ValueError, OverflowError):  # JSON allows integers that exceed the range of floats
        return None
    is_unit = unit_allowed and max(x1, y1, x2, y2) < 2.0
    return Box(x1, y1, x2, y2, "unit" if is_unit else "original")


def clipped(box: Box, size: Size) -> Box | None:
    """A valid annotated box without what lies beyond its image of `size`; None with less than half of its area inside.

    Args:
        box: in original pixels, or in units of the image.
    """
    width, height = (1.0, 1.0) if box.frame == "unit" else (float(size[0]), float(size[1]))
    inside = Box(max(0.0, box.x1), max(0.0, box.y1), min(width, box.x2), min(height, box.y2), box.frame)
    return inside if inside.is_valid and _area(inside) >= MIN_INSIDE * _area(box) else None


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


Numbers = tuple[float, float, float, float]


def _numbers(box: BoxLike) -> Numbers:
    """The four finite numbers of a box.

    Raises:
        ValueError: one of them is not finite.
    """
    x1, y1, x2, y2 = (box.x1, box.y1, box.x2, box.y2) if isinstance(box, Box) else map(float, box)
    if not math.isfinite(x1 + y1 + x2 + y2) and not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"a box has four finite numbers, got {tuple(box)}")
    return x1, y1, x2, y2


def _scaled(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Both boxes, scaled so that products neither overflow nor underflow (rarely needed)."""
    largest = max(max(a), max(b), -min(a), -min(b))
    if 1e-75 <= largest <= 1e75 or largest == 0:
        return a, b
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    return (
        (ax1 / largest, ay1 / largest, ax2 / largest, ay2 / largest),
        (bx1 / largest, by1 / largest, bx2 / largest, by2 / largest),
    )


def _iou(a: Numbers, b: Numbers) -> float:
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = (ax2 if ax2 < bx2 else bx2) - (ax1 if ax1 > bx1 else bx1)
    height = (ay2 if ay2 < by2 else by2) - (ay1 if ay1 > by1 else by1)
    if width <= 0 or height <= 0 or ax1 >= ax2 or ay1 >= ay2 or bx1 >= bx2 or by1 >= by2:
        return 0.0
    shared = width * height
    return shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)


# What CIoU needs per box: its numbers, its extent (left, right, top, bottom; a reversed box has one, too), and the angle of
# its aspect.
_Measured = tuple[Numbers, float, float, float, float, float]


def _measured(box: Numbers) -> _Measured:
    x1, y1, x2, y2 = box
    left, right = (x1, x2) if x1 < x2 else (x2, x1)
    top, bottom = (y1, y2) if y1 < y2 else (y2, y1)
    return box, left, right, top, bottom, math.atan2(max(x2 - x1, 0.0), max(y2 - y1, 0.0))


def _ciou(a: _Measured, b: _Measured) -> float:
    box_a, left_a, right_a, top_a, bottom_a, angle_a = a
    box_b, left_b, right_b, top_b, bottom_b, angle_b = b
    across = (right_a if right_a > right_b else right_b) - (left_a if left_a < left_b else left_b)
    down = (bottom_a if bottom_a > bottom_b else bottom_b) - (top_a if top_a < top_b else top_b)
    diagonal2 = across * across + down * down
    if not 1e-150 < diagonal2 < 1e150:
        scaled = _scaled(box_a, box_b)
        if scaled != (box_a, box_b):
            return _ciou(_measured(scaled[0]), _measured(scaled[1]))
    overlap = _iou(box_a, box_b)
    apart_x, apart_y = left_a + right_a - left_b - right_b, top_a + bottom_a - top_b - bottom_b
    distance = (apart_x * apart_x + apart_y * apart_y) / 4 / diagonal2 if diagonal2 > 0 else 0.0
    turn = angle_a - angle_b
    aspect = _ASPECT * turn * turn
    weight = aspect / (1 - overlap + aspect) if aspect > 0 else 0.0
    return overlap - distance - weight * aspect
