"""Attention rows reduced block by block: the numbers of whole rows, without their memory, and in float32 under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fgrpo.policy import attention_sums
from fgrpo.policy.attention_sums import BLOCK, Rows, Sums, sums_of

HEADS, KEY_HEADS, SIZE, LENGTH, SCALE = 4, 2, 8, 500, 0.35
FIELDS = ("every_HQ", "image_HQ", "evidence_HQ", "image_HQI")


class Largest(TorchDispatchMode):
    """Notes the numbers of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = out if isinstance(out, (tuple, list)) else [out]
        self.numbers = max([self.numbers, *(part.numel() for part in given if isinstance(part, Tensor))])
        return out


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, Rows]:
    """Queries and keys of one row, and what is read: more queries than two blocks have, of a response after an image."""
    drawn = torch.Generator().manual_seed(2)
    query = torch.randn(1, HEADS, LENGTH, SIZE, generator=drawn)
    key = torch.randn(1, KEY_HEADS, LENGTH, SIZE, generator=drawn)
    image = torch.arange(10, 90)
    return query, key, Rows(torch.arange(LENGTH - 2 * BLOCK - 50, LENGTH), image, image[::3])


def equal(one: Sums, other: Sums) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return all((a is None and b is None) or torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("keep_image", [False, True])
@pytest.mark.parametrize("kind", ["none", "padded", "square"])
def test_blocks_give_the_numbers_of_whole_rows(layer: Any, monkeypatch: Any, kind: str, keep_image: bool) -> None:
    query, key, rows = layer
    mask = None if kind == "none" else torch.ones(1, LENGTH, dtype=torch.long)
    if kind == "padded":
        mask[0, :10] = 0
    if kind == "square":
        mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    found = sums_of(query, key, mask, 0, rows, SCALE, keep_image)
    assert found.every_HQ.shape == (HEADS, len(rows.queries)) and (found.image_HQI is not None) == keep_image
    monkeypatch.setattr(attention_sums, "BLOCK", LENGTH)
    assert equal(found, sums_of(query, key, mask, 0, rows, SCALE, keep_image))


def test_no_more_than_a_block_of_rows_exists_at_once(layer: Any) -> None:
    query, key, rows = layer
    with Largest() as largest:
        sums_of(query, key, None, 0, rows, SCALE, False)
    assert largest.numbers == HEADS * BLOCK * LENGTH < HEADS * len(rows.queries) * LENGTH


def test_no_token_to_read_gives_no_row(layer: Any) -> None:
    query, key, rows = layer
    found = sums_of(query, key, None, 0, Rows(rows.queries[:0], rows.image, rows.evidence), SCALE, True)
    assert (
        found.every_HQ.shape == (HEADS, 0) and found.image_HQI is not None and found.image_HQI.shape == (HEADS, 0, 80)
    )


def test_autocast_changes_no_number(layer: Any) -> None:
    """Its matrix product of float32 tensors would be one of bfloat16, whose logits are off by hundredths."""
    query, key, rows = layer
    wanted = sums_of(query, key, None, 0, rows, SCALE, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.matmul(query, key[:, :1].mT).dtype == torch.bfloat16
        found = sums_of(query, key, None, 0, rows, SCALE, True)
    assert found.every_HQ.dtype == torch.float32 and all(
        torch.equal(getattr(wanted, name), getattr(found, name)) for name in FIELDS
    )
