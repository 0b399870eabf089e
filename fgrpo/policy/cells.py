"""Annotated boxes on the grid of image tokens: which cells they cover, other regions of that shape, and their pixels.

A cell is the part of an image that becomes one image token: `PixelBounds.factor` pixels a side (28 for Qwen2.5-VL, 32 for
Qwen3-VL). An image of `model_size` (width, height) has height / factor rows and width / factor columns of cells, and its image
tokens are the cells row by row. Needs no torch. Shapes: R rows, C columns; one array for each image of a sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fgrpo.boxes import PixelBounds, convert, model_size
from fgrpo.images import image_size
from fgrpo.types import Box, Sample, box_image

Shares = tuple[NDArray[np.float64], ...]  # (R, C) of each image
Cells = tuple[NDArray[np.bool_], ...]  # (R, C) of each image
_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # a cell and the eight around it
_TRIES = 8  # placements that are tried for one control


def grid(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """(R, C) of an image of `size` (width, height) in model pixels."""
    return size[1] // factor, size[0] // factor


def box_shares(box: Box, size: tuple[int, int], factor: int) -> NDArray[np.float64]:
    """Share (R, C) of each cell's area that a box covers, in [0, 1]; what lies beyond the image does not count.

    Args:
        box: in model pixels.
        size: (width, height) of its image in model pixels.
        factor: pixels per side of a cell.

    Raises:
        ValueError: the box is in another frame.
    """
    if box.frame != "model":
        raise ValueError(f"a box in model pixels is needed, got one in the frame {box.frame!r}")
    rows, columns = grid(size, factor)
    down_R = _covered(box.y1, box.y2, rows, factor)
    across_C = _covered(box.x1, box.x2, columns, factor)
    return down_R[:, None] * across_C[None, :]


def _covered(low: float, high: float, count: int, factor: int) -> NDArray[np.float64]:
    """Share of each of `count` intervals of length `factor` that lies between `low` and `high`."""
    starts = np.arange(count) * float(factor)
    inside = np.minimum(high, starts + factor) - np.maximum(low, starts)
    return np.clip(inside, 0.0, None) / factor


def sample_shares(sample: Sample, bounds: PixelBounds) -> Shares | None:
    """For each image of a sample, the share of each cell that its annotated boxes cover; those of several boxes are added up.

    Boxes that are not valid, or lie beyond their image, are left out. None: no box is left, or none is annotated.

    Args:
        bounds: of the policy's processor.

    Raises:
        one of `fgrpo.images.IMAGE_ERRORS`: the size of an image cannot be read, or a box is in an image that does not exist.
    """
    if not sample.boxes:
        return None
    originals = [image_size(path) for path in sample.images]
    sizes = [model_size(original, *bounds) for original in originals]
    shares = tuple(np.zeros(grid(size, bounds.factor)) for size in sizes)
    for place, box in enumerate(sample.boxes):
        if not box.is_valid:
            continue
        image = box_image(sample, place)
        shares[image][...] += box_shares(
            convert(box, "model", originals[image], sizes[image]), sizes[image], bounds.factor
        )
    return shares if any(part.any() for part in shares) else None


def touched(shares: Shares) -> Cells:
    """The cells with a positive share; together they contain the boxes completely."""
    return tuple(part > 0 for part in shares)


def dilated(cells: Cells, by: int) -> Cells:
    """`cells` grown by this many cells on every side, within their images."""
    if by == 0:
        return cells
    return tuple(
        np.asarray(ndimage.binary_dilation(part, _NEIGHBOURS, iterations=by)) if part.any() else part for part in cells
    )


def controls(cells: Cells, count: int, seed: str) -> list[Cells]:
    """Up to `count` regions of the same cells at other places of the same images, without overlap with `cells`.

    Each connected part keeps its shape and moves on its own, so a control has as many cells as `cells`. Controls may overlap one
    another. Fewer than `count`, or none, where no placement was found.

    Args:
        seed: the result depends on it and on `cells` alone.
    """
    found = []
    for number in range(count):
        for attempt in range(_TRIES):
            rng = random.Random(f"{seed}:control:{number}:{attempt}")
            moved = [_moved(part, rng) for part in cells]
            if all(part is not None for part in moved):
                found.append(tuple(part for part in moved if part is not None))
                break
    return found


def _moved(cells: NDArray[np.bool_], rng: random.Random) -> NDArray[np.bool_] | None:
    """The parts of `cells` (R, C) at random free places, the largest first; None if one does not fit."""
    labels, count = ndimage.label(cells, _NEIGHBOURS)
    parts: list[NDArray[Any]] = sorted((np.argwhere(labels == n + 1) for n in range(count)), key=len, reverse=True)
    free, out = ~cells, np.zeros_like(cells)
    for part in parts:
        part = part - part.min(axis=0)
        height, width = part.max(axis=0) + 1
        fits = np.ones((cells.shape[0] - height + 1, cells.shape[1] - width + 1), dtype=bool)
        for row, column in part:
            fits &= free[row : row + fits.shape[0], column : column + fits.shape[1]]
        places = np.argwhere(fits)
        if not len(places):
            return None
        at = part + places[rng.randrange(len(places))]
        out[at[:, 0], at[:, 1]] = True
        free[at[:, 0], at[:, 1]] = False
    return out


def random_cells(shapes: Sequence[tuple[int, int]], share: float, seed: str) -> Cells:
    """Each cell of images of these shapes (R, C) with probability `share`, at least one of an image, by `seed` alone."""
    rng = random.Random(f"{seed}:patches")
    drawn = [np.array([[rng.random() for _ in range(columns)] for _ in range(rows)]) for rows, columns in shapes]
    # Without a chosen cell nothing would change, and a dependence of 0 would be measured.
    return tuple(part < max(share, np.nextafter(part.min(), 1.0)) for part in drawn)


def ring(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells (R, C) next to `cells`, without them."""
    return np.asarray(ndimage.binary_dilation(cells, _NEIGHBOURS)) & ~cells
