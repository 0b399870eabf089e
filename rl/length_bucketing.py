"""A padded batch as pieces of rows that are about as long, without the padding around them.

A batch of rollouts is as wide as its longest prompt and its longest completion together, and half of it may be padding that
is computed for nothing. What a row comes to does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 8  # of a piece on a CPU; a step takes as long with 16, and longer with 40
BY_TOKEN = ("token_type_ids", "mm_token_type_ids")  # fields (B, L) beside the ids and the mask


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch, and the columns that hold all of their tokens; of these the last `kept` are completions."""

    rows: list[int]
    columns: slice
    kept: int


def cut(mask_BL: Tensor, kept: int, most: int) -> list[Piece]:
    """The pieces of a batch, its shortest rows first; each row is in one of them.

    Args:
        mask_BL: 1 for tokens, 0 for padding; prompts are padded on the left, completions on the right.
        kept: how many columns at the end are completions.
        most: rows of a piece.
    """
    width = mask_BL.shape[1]
    starts = mask_BL.argmax(dim=1)
    lengths = mask_BL[:, width - kept :].sum(dim=1)
    order = torch.argsort(mask_BL.sum(dim=1), stable=True)
    out = []
    for rows in torch.split(order, most):
        here = max(int(lengths[rows].max()), 1)
        out.append(Piece(rows.tolist(), slice(int(starts[rows].min()), width - kept + here), here))
    return out


def of_pictures(
    fields: Mapping[str, Any], rows: Sequence[int], images_B: Sequence[int]
) -> dict[str, Tensor | list[int]]:
    """`pixel_values` (patches, P), `image_grid_thw` (pictures, 3) and `num_images` of `rows`, of whose batch each row has
    `images_B` pictures."""
    grids = fields["image_grid_thw"]
    pictures = torch.split(torch.arange(len(grids)), list(images_B))
    wanted = torch.cat([pictures[row] for row in rows])
    patches = torch.split(fields["pixel_values"], grids.prod(dim=-1).tolist())
    return {
        "pixel_values": torch.cat([patches[i] for i in wanted.tolist()]),
        "image_grid_thw": grids[wanted],
        "num_images": [images_B[row] for row in rows],
    }
