"""Counterfactual maps: each block's own drop at its own place, whatever passes together, and no more passes than promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rl.probes.base import Batch, Rollouts
from rl.probes.maps import block_side, drop_maps
from rl.probes.passes import Passes
from tests.rl.test_probes import context, replaced
from tests.rl.test_shared_prefix import FIELDS

WEIGHTS = np.random.default_rng(0).normal(size=16)  # of the cells of one 4 x 4 image, some below 0


def answer(make: Any, policy_of: Any, copies: int) -> tuple[Batch, Passes]:
    """An answer of four tokens, as often as images pass together, and a stand-in for the policy."""
    trainer, made = replaced(make, [[4] * copies], policy_of)
    ids_BL = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    mask_BL = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
    batch = Batch(Rollouts((), (), (), context()), ids_BL, mask_BL, 4, copies, {key: made[key] for key in FIELDS})
    return batch, Passes(trainer, batch)


def drop(row: int, blank: set[int]) -> float:
    return -1.0 - sum(WEIGHTS[cell] for cell in blank)


@pytest.mark.parametrize("copies", [1, 3, 16])
def test_each_cell_has_its_own_drop_at_its_own_place(make: Any, copies: int) -> None:
    """Also those that raise the probability, and whatever number of changed images passes together."""
    found = drop_maps(*answer(make, drop, copies))
    assert found.side == 1 and len(found.drops) == 1
    assert found.drops[0] == pytest.approx(WEIGHTS.reshape(4, 4), abs=1e-5) and found.drops[0].min() < 0


def test_many_cells_are_blanked_in_blocks(make: Any) -> None:
    blanked: list[frozenset[int]] = []

    def watched(row: int, blank: set[int]) -> float:
        blanked.append(frozenset(blank))
        return drop(row, blank)

    found = drop_maps(*answer(make, watched, 1), most=4)
    expected = WEIGHTS.reshape(2, 2, 2, 2).sum(axis=(1, 3))
    assert found.side == 2 and found.drops[0] == pytest.approx(expected, abs=1e-5)
    assert len(blanked) == 5 and set(blanked[1:]) == {
        frozenset(first + cell for cell in (0, 1, 4, 5)) for first in (0, 2, 8, 10)
    }


def test_numbers_that_are_not_finite_are_no_map(make: Any) -> None:
    with pytest.raises(ValueError, match="not finite"):
        drop_maps(*answer(make, lambda row, blank: float("nan") if blank else -1.0, 2))


@pytest.mark.parametrize(
    ("shapes", "side"), [([(4, 4)], 1), ([(8, 8)], 1), ([(9, 8)], 2), ([(4, 4), (36, 27)], 4), ([(1, 65)], 2)]
)
def test_the_number_of_passes_is_bounded_for_each_image(shapes: list[tuple[int, int]], side: int) -> None:
    found = block_side(shapes, 64)
    assert found == side
    assert all(-(-rows // found) * -(-columns // found) <= 64 for rows, columns in shapes)
