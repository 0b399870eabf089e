"""Blank cells of images that the processor has already prepared: one indexed write, the same grid and token ids.

The processors of Qwen2.5-VL and Qwen3-VL give one row of `pixel_values` per patch. The rows of a cell, which the tower merges
into one image token, follow one another: cell c of an image has its rows m²·c to m²·c + m² - 1, for m patches a side. A row
holds its channels one after the other. So an image with blanked cells equals the processor's output for an image file that was
edited at the same cells, if the file has the size that the model sees.
Shapes: P patches of all images, D numbers per patch, M = m² patches per cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgrpo.policy.cells import ring

Fill = Literal["zero", "black", "ring"]
CHANNELS = 3
NOT_NORMALISED = "the processor does not normalise images (do_normalize: false in preprocessor_config.json), so that 0 is black and no mean colour"


def black(image_processor: Any) -> Tensor:
    """The value of a black pixel (3,) after the processor's normalisation."""
    if not getattr(image_processor, "do_normalize", True):
        return torch.zeros(CHANNELS)
    mean, std = (torch.tensor(getattr(image_processor, name)) for name in ("image_mean", "image_std"))
    return -mean / std


def blanked(
    pixels_PD: Tensor,
    grids: Tensor,
    per_cell: int,
    cells: Sequence[NDArray[np.bool_] | None],
    fill: Fill,
    black_3: Tensor | None = None,
) -> Tensor:
    """`pixel_values` with cells of some images blanked; the given tensor stays as it is.

    Args:
        pixels_PD: the processor's, of all images one after the other.
        grids: (images, 3) their patches: frames, rows, columns.
        per_cell: M, patches of one cell (`Backbone.patches_per_token`).
        cells: for each image the cells (R, C) to blank, None for none.
        fill: "zero", the mean colour after normalisation; "black"; or "ring", the mean colour of the cells around the region
            (zero where there are none).
        black_3: the value of a black pixel, for "black".

    Raises:
        ValueError: cells that do not fit the grid of their image.
    """
    out_PD = pixels_PD.clone()
    side = round(per_cell**0.5)
    start = 0
    for (frames, rows, columns), chosen in zip(grids.tolist(), cells, strict=True):
        count = frames * rows * columns
        if chosen is not None and chosen.any():
            if frames != 1 or chosen.shape != (rows // side, columns // side):
                raise ValueError(
                    f"cells of shape {chosen.shape} for an image of {frames} x {rows} x {columns} patches, {per_cell} per cell"
                )
            image_PD = pixels_PD[start : start + count]
            out_PD[start + _patches(chosen, per_cell, out_PD)] = _colour(image_PD, chosen, per_cell, fill, black_3)
        start += count
    return out_PD


def _patches(chosen: NDArray[np.bool_], per_cell: int, like: Tensor) -> Tensor:
    """The rows of an image's patches that make up the chosen cells."""
    cells = torch.from_numpy(np.flatnonzero(chosen)).to(like.device)
    return (cells[:, None] * per_cell + torch.arange(per_cell, device=like.device)).flatten()


def _colour(image_PD: Tensor, chosen: NDArray[np.bool_], per_cell: int, fill: Fill, black_3: Tensor | None) -> Tensor:
    """A patch (D,) of one colour."""
    size = image_PD.shape[1]
    around = ring(chosen)
    if fill == "zero" or (fill == "ring" and not around.any()):
        return image_PD.new_zeros(size)
    if fill == "black":
        if black_3 is None:
            raise ValueError("the value of a black pixel is needed to fill with black")
        colour_3 = black_3.to(image_PD)
    else:
        ring_PD = image_PD[_patches(around, per_cell, image_PD)]
        colour_3 = ring_PD.view(len(ring_PD), CHANNELS, -1).float().mean(dim=(0, 2)).to(image_PD)
    return colour_3.repeat_interleave(size // CHANNELS)
