"""Relation words and the exact relations between boxes, on which everything else in the world is based."""

from __future__ import annotations

import math
from collections.abc import Sequence

from miniworld.scene import Scene

AXES = ("hrel", "vrel", "depth")
OPTIONS: dict[str, tuple[str, str]] = {
    "hrel": ("left", "right"),
    "vrel": ("above", "below"),
    "depth": ("closer", "farther"),
}
AXIS_OF = {word: axis for axis, words in OPTIONS.items() for word in words}
OPPOSITE = {a: b for one, two in OPTIONS.values() for a, b in ((one, two), (two, one))}
TAIL = {"hrel": " of", "vrel": "", "depth": " than"}  # "left of", "above", "closer than"
NUMBERS = ("zero", "one", "two", "three", "four")
ORDINALS = ("first", "second")


def relation(axis: str, a: Sequence[float], b: Sequence[float]) -> str | None:
    """The relation of box `a` to box `b` on `axis`: by centres for hrel and vrel, by area for depth. None on a tie."""
    value = {
        "hrel": (b[0] + b[2]) - (a[0] + a[2]),
        "vrel": (b[1] + b[3]) - (a[1] + a[3]),
        "depth": (a[2] - a[0]) * (a[3] - a[1]) - (b[2] - b[0]) * (b[3] - b[1]),
    }[axis]
    return None if value == 0 else OPTIONS[axis][0 if value > 0 else 1]


def from_behind(axis: str, word: str) -> str:
    """The relation as seen from behind the scene: left and right, closer and farther swap."""
    return word if axis == "vrel" else OPPOSITE[word]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Distance between the centres of two boxes, in the boxes' unit."""
    return math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)


def nearer(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> int | None:
    """0 if `a` is nearer to `b` than to `c`, 1 if nearer to `c`, None on a tie."""
    to_b, to_c = distance(a, b), distance(a, c)
    return None if math.isclose(to_b, to_c) else int(to_c < to_b)


def count(scene: Scene, shape: str) -> int:
    """Number of things of `shape` in the scene; "thing" counts all."""
    return sum(shape in ("thing", t.shape) for t in scene.things)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 if they do not overlap."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
