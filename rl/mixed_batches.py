"""Batches of rows with and without images, which TRL cannot pass to a processor: a row without images gets an empty list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def with_image_lists(rows: list[Row]) -> list[Row]:
    """`rows` as they are if all have images or none has such a column; else each with a list `images`, empty where it has none."""
    if not rows or not {"images", "image"} & set(rows[0]):
        return rows
    lists = [_images(row) for row in rows]
    return rows if all(lists) else [{**row, "images": images} for row, images in zip(rows, lists, strict=True)]


def _images(row: Row) -> list[Any]:
    if row.get("images") is not None:
        return list(row["images"])
    return [] if row.get("image") is None else [row["image"]]


def has_images(rows: Sequence[Row], generated: Sequence[Any] | None) -> bool:
    """Whether a forward pass of these rows sees an image.

    Args:
        generated: TRL's images per rollout, those of tools among them; None without any.
    """
    return any(generated or ()) or any(_images(row) for row in rows)
