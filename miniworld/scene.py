"""What is in a picture of the miniature world, and how such pictures are drawn at random.

A picture has 112 x 112 px, which Qwen2.5-VL (patch 14, merge 2) turns into 4 x 4 image tokens of 28 px. A scene holds
two to four things of different colours; each lies inside its own image token, and no two share a row, a column or a
size, so that every relation between two things is well defined. Coordinates are multiples of 4 px: finer than an image
token, so a coarse relation can be seen at a glance while a good box takes more. A bigger thing is closer to the camera.

The paper has no such world; it stands in for the photographs of Section 4 where no GPU is at hand.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PIXELS = 112  # side of a picture, px
CELL = 28  # side of an image token, px
UNIT = 4  # grid of all coordinates, px
BOARD = PIXELS // CELL  # image tokens a side
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
    """One thing: a colour word, a shape word and its box (x1, y1, x2, y2) in px, x2 and y2 exclusive."""

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
        """Middle of the box in px."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column of the image token that the thing lies in."""
        return self.box[1] // CELL, self.box[0] // CELL


@dataclass(frozen=True)
class Scene:
    """The things of one picture."""

    things: tuple[Thing, ...]

    def by_name(self, name: str) -> Thing | None:
        """The thing called `name` ("red circle"; case and outer blanks aside), or None."""
        key = " ".join(name.lower().split())
        return next((t for t in self.things if t.name == key), None)

    def box_of(self, name: str) -> BoxPx:
        """The box of the thing called `name`. KeyError if there is none."""
        thing = self.by_name(name)
        if thing is None:
            raise KeyError(name)
        return thing.box

    def to_dict(self) -> dict[str, Any]:
        return {"things": [{"color": t.color, "shape": t.shape, "box": list(t.box)} for t in self.things]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        things = []
        for item in data["things"]:
            x1, y1, x2, y2 = (int(v) for v in item["box"])
            things.append(Thing(str(item["color"]), str(item["shape"]), (x1, y1, x2, y2)))
        return cls(tuple(things))


def box_in_cell(rng: random.Random, row: int, column: int, size: int) -> BoxPx:
    """A box of side `size` px at a random place on the grid inside image token (row, column)."""
    slack = (CELL - size) // UNIT
    x = column * CELL + UNIT * rng.randint(0, slack)
    y = row * CELL + UNIT * rng.randint(0, slack)
    return x, y, x + size, y + size


def place(rng: random.Random, kinds: Sequence[tuple[str, str]]) -> Scene:
    """Puts things of the given (colour, shape) kinds at random into a scene: distinct rows, columns and sizes."""
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
    """A random scene of `n_min` to `n_max` things (both included, at most 4); the same `rng` gives the same scene."""
    if not 1 <= n_min <= n_max <= BOARD:
        raise ValueError(f"a scene holds 1 to {BOARD} things, not {n_min} to {n_max}")
    return place(rng, sample_kinds(rng, rng.randint(n_min, n_max)))
