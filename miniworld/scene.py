"""Scenes of the miniature world, and how they are sampled.

An image has 112 x 112 px, which Qwen2.5-VL (patch 14, merge 2) encodes as 4 x 4 image tokens of 28 px. A scene contains two to
four things of different colours. Each lies inside its own image token, and no two share a row, a column or a size, so every
relation between two things is well defined. Coordinates are multiples of 4 px, finer than an image token: a coarse relation is
easy to see, while a good box takes more. A bigger thing is closer to the camera.

The paper has no such world; it replaces the photographs of Section 4 where no GPU is available.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PIXELS = 112  # side of an image, px
CELL = 28  # side of an image token, px
UNIT = 4  # grid of all coordinates, px
BOARD = PIXELS // CELL  # image tokens per side
SIZES = tuple(range(12, CELL + 1, UNIT))  # sides of things, px

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 180),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle")

BoxPx = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """One thing: a colour word, a shape word, and its box (x1, y1, x2, y2) in px, with x2 and y2 exclusive."""

    color: str
    shape: str
    box: BoxPx

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def size(self) -> int:
        """Side of the box in px."""
        return self.box[2] - self.box[0]

    @property
    def center(self) -> tuple[float, float]:
        """Centre (x, y) of the box in px."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column) of the image token that contains the thing."""
        return self.box[1] // CELL, self.box[0] // CELL


@dataclass(frozen=True)
class Scene:
    """The things of one image."""

    things: tuple[Thing, ...]

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of the image in px."""
        return PIXELS, PIXELS

    def by_name(self, name: str) -> Thing | None:
        """The thing named `name` ("red circle"; case and surrounding blanks are ignored), or None."""
        key = " ".join(name.lower().split())
        return next((t for t in self.things if t.name == key), None)

    def box_of(self, name: str) -> BoxPx:
        """The box of the thing named `name`.

        Raises:
            KeyError: there is no such thing.
        """
        thing = self.by_name(name)
        if thing is None:
            raise KeyError(name)
        return thing.box

    def to_dict(self) -> dict[str, Any]:
        return {"things": [{"color": t.color, "shape": t.shape, "box": list(t.box)} for t in self.things]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: `data` is not the output of `to_dict`.
        """
        things = []
        for item in data["things"]:
            x1, y1, x2, y2 = (int(v) for v in item["box"])
            things.append(Thing(str(item["color"]), str(item["shape"]), (x1, y1, x2, y2)))
        return cls(tuple(things))


def box_in_cell(rng: random.Random, row: int, column: int, size: int) -> BoxPx:
    """A box with side `size` px at a random grid position inside image token (row, column)."""
    slack = (CELL - size) // UNIT
    x = column * CELL + UNIT * rng.randint(0, slack)
    y = row * CELL + UNIT * rng.randint(0, slack)
    return x, y, x + size, y + size


def place(rng: random.Random, kinds: Sequence[tuple[str, str]]) -> Scene:
    """A scene with things of these (colour, shape) kinds at random positions: distinct rows, columns and sizes."""
    count = len(kinds)
    rows, columns = rng.sample(range(BOARD), count), rng.sample(range(BOARD), count)
    sizes = rng.sample(SIZES, count)
    things = (
        Thing(color, shape, box_in_cell(rng, row, column, size))
        for (color, shape), row, column, size in zip(kinds, rows, columns, sizes, strict=True)
    )
    return Scene(tuple(things))


def sample_kinds(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` pairs of (colour, shape) with distinct colours."""
    return [(color, rng.choice(SHAPES)) for color in rng.sample(list(COLORS), count)]


def sample_scene(rng: random.Random, n_min: int = 2, n_max: int = 4) -> Scene:
    """A random scene of `n_min` to `n_max` things (inclusive); the same `rng` gives the same scene.

    Raises:
        ValueError: the limits are not within 1 to 4.
    """
    if not 1 <= n_min <= n_max <= BOARD:
        raise ValueError(f"a scene has 1 to {BOARD} things, not {n_min} to {n_max}")
    return place(rng, sample_kinds(rng, rng.randint(n_min, n_max)))
