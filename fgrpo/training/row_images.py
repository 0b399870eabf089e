"""The images of a batch's rows: which patches and grids belong to which row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def image_fields(
    fields: Mapping[str, Any], rows: Sequence[int], images_B: Sequence[int], grid_field: str
) -> dict[str, Tensor | list[int]]:
    """`pixel_values` (patches, P), the grids (images, 3) and `num_images` of some rows.

    Args:
        fields: those of the batch.
        rows: which rows.
        images_B: images per row of the batch.
        grid_field: the name of the grids (`Backbone.grid_field`).
    """
    grids = fields[grid_field]
    images = torch.split(torch.arange(len(grids)), list(images_B))
    chosen = torch.cat([images[row] for row in rows])
    patches = torch.split(fields["pixel_values"], grids.prod(dim=-1).tolist())
    return {
        "pixel_values": torch.cat([patches[i] for i in chosen.tolist()]),
        grid_field: grids[chosen],
        "num_images": [images_B[row] for row in rows],
    }


class RowImages:
    """The images of a batch's rows.

    Args:
        fields: of the batch: `pixel_values`, the grids and `num_images`, or none of them.
        grid_field: the name of the grids (`Backbone.grid_field`).
    """

    def __init__(self, fields: Mapping[str, Any], grid_field: str) -> None:
        self.fields, self.grid_field = fields, grid_field
        self.counts = fields.get("num_images")
        if self.counts is None:
            return
        self.grids = fields[grid_field].split(self.counts)
        self.pixels = fields["pixel_values"].split([int(part.prod(dim=-1).sum()) for part in self.grids])

    def same(self, one: int, other: int) -> bool:
        """Whether two rows have the same images: the same grids, and the same patches in them."""
        if self.counts is None:
            return True
        return torch.equal(self.grids[one], self.grids[other]) and torch.equal(self.pixels[one], self.pixels[other])

    def of(self, rows: Sequence[int]) -> dict[str, Any]:
        """`pixel_values` and grids of some rows; {} without images."""
        if self.counts is None or not any(self.counts[row] for row in rows):
            return {}
        found = image_fields(self.fields, rows, self.counts, self.grid_field)
        del found["num_images"]
        return found
