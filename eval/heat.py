"""Numbers over an image as colours: one sequential scale (magma), logarithmic, with fixed ends, so that all maps compare.

A map is a PNG of one pixel per cell, which the page stretches over the image.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from eval.maps import Grid

# Every eighth of matplotlib's magma, whose lightness rises evenly.
MAGMA = (
    (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122),
    (229, 80, 100), (251, 135, 97), (254, 194, 135), (252, 253, 191),
)  # fmt: skip


@dataclass(frozen=True)
class Tick:
    """A mark of the legend: its place in percent of the bar, and whether it is the one to compare with."""

    at: float
    label: str
    is_reference: bool = False


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale from `low` to `high`; what lies beyond has the colour of the end.

    Attributes:
        unit: of the labels.
        ticks: (value, label) of the legend.
        reference: the value to compare with, None if there is none.
    """

    low: float
    high: float
    unit: str
    ticks: tuple[tuple[float, str], ...]
    reference: float | None = None

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1; 0 and less than it at the low end."""
        if value <= self.low:
            return 0.0
        return min(1.0, math.log(value / self.low) / math.log(self.high / self.low))

    def marks(self) -> list[Tick]:
        """The legend's ticks."""
        return [Tick(round(100 * self.place(value), 2), label, value == self.reference) for value, label in self.ticks]


ATTENTION = Scale(
    0.25, 16.0, "× uniform", ((0.25, "≤ ¼"), (0.5, "½"), (1.0, "uniform"), (2.0, "2"), (4.0, "4"), (8.0, "8"), (16.0, "≥ 16")), 1.0
)  # fmt: skip
DROP = Scale(0.003, 3.0, "nats a token", ((0.003, "≤ 0.003"), (0.01, "0.01"), (0.1, "0.1"), (1.0, "1"), (3.0, "≥ 3")))


def colour(place: float) -> tuple[int, int, int]:
    """The colour at a place from 0 to 1."""
    at = place * (len(MAGMA) - 1)
    first = min(int(at), len(MAGMA) - 2)
    red, green, blue = (round(a + (b - a) * (at - first)) for a, b in zip(MAGMA[first], MAGMA[first + 1], strict=True))
    return red, green, blue


def gradient() -> str:
    """The scale from left to right, as CSS."""
    stops = (f"rgb{colour(n / (len(MAGMA) - 1))}" for n in range(len(MAGMA)))
    return f"linear-gradient(90deg, {', '.join(stops)})"


def uri(grid: Grid, scale: Scale, factor: float = 1.0, side: int = 1, shape: tuple[int, int] | None = None) -> str:
    """A PNG as a data URI.

    Args:
        grid: numbers of cells, or of blocks of `side` x `side` cells.
        factor: what they are multiplied with.
        shape: (R, C) of the image's cells; None: that of `grid`. Blocks at the right and lower edge may be cut.
    """
    coloured = [[colour(scale.place(factor * number)) for number in row] for row in grid]
    pixels = np.array(coloured, dtype=np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    rows, columns = shape or pixels.shape[:2]
    out = io.BytesIO()
    Image.fromarray(pixels[:rows, :columns]).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def cells(grids: Sequence[Grid]) -> int:
    """How many numbers the grids have."""
    return sum(len(grid) * len(grid[0]) for grid in grids)
