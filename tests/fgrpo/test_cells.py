"""Boxes on the grid of image tokens by hand-worked numbers, and regions of the same shape elsewhere."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from fgrpo.boxes import PixelBounds
from fgrpo.policy import cells
from fgrpo.types import Box, Sample

QWEN2_5 = PixelBounds(28 * 28, 1 << 20, 28)
QWEN3 = PixelBounds(32 * 32, 1 << 20, 32)


def sample(folder: Path, sizes: list[tuple[int, int]], boxes: list[Box], **meta: object) -> Sample:
    paths = []
    for n, size in enumerate(sizes):
        paths.append(str(folder / f"{n}.png"))
        Image.new("RGB", size).save(paths[-1])
    return Sample("vgr/train/0", tuple(paths), "?", ("a", "b"), "a", tuple(boxes), meta)


def test_shares_by_hand_on_cells_of_28_pixels(tmp_path: Path) -> None:
    """An image of 112 x 84 has 3 rows and 4 columns; the box covers half of two cells in the first row, a quarter below."""
    (shares,) = cells.sample_shares(sample(tmp_path, [(112, 84)], [Box(14, 0, 42, 42)]), QWEN2_5) or ()
    assert shares.tolist() == [[0.5, 0.5, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0, 0]]
    assert cells.touched((shares,))[0].sum() == 4


def test_shares_by_hand_on_cells_of_32_pixels(tmp_path: Path) -> None:
    """Thousandths of an image of 96 x 64: (0, 500, 500, 1000) is (0, 32, 48, 64) in pixels."""
    box = Box(0, 500, 500, 1000, "thousand")
    (shares,) = cells.sample_shares(sample(tmp_path, [(96, 64)], [box]), QWEN3) or ()
    assert shares.tolist() == [[0, 0, 0], [1, 0.5, 0]]


def test_a_resized_image_and_several_boxes_add_up(tmp_path: Path) -> None:
    """A file of 56 x 56 that the model sees as 112 x 112: a box in file pixels is twice as large there."""
    boxes = [Box(0, 0, 28, 28, "original"), Box(0, 0, 0.25, 0.5, "unit"), Box(5, 5, 5, 5, "original")]
    (shares,) = cells.sample_shares(sample(tmp_path, [(56, 56)], boxes), PixelBounds(112 * 112, 1 << 20, 28)) or ()
    assert shares.tolist() == [[2, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_each_box_is_on_its_own_image(tmp_path: Path) -> None:
    boxes = [Box(0, 0, 28, 28), Box(28, 28, 56, 56)]
    first, second = cells.sample_shares(sample(tmp_path, [(84, 56), (56, 56)], boxes, box_images=[1, 0]), QWEN2_5) or ()
    assert first.tolist() == [[0, 0, 0], [0, 1, 0]] and second.tolist() == [[1, 0], [0, 0]]


def test_no_box_is_none_and_a_box_on_an_edge_touches_one_side(tmp_path: Path) -> None:
    assert cells.sample_shares(sample(tmp_path, [(56, 56)], []), QWEN2_5) is None
    assert cells.sample_shares(sample(tmp_path, [(56, 56)], [Box(60, 60, 90, 90)]), QWEN2_5) is None
    shares = cells.sample_shares(sample(tmp_path, [(56, 56)], [Box(0, 0, 28, 28)]), QWEN2_5)
    assert shares is not None and cells.touched(shares)[0].tolist() == [[True, False], [False, False]]


def test_a_box_of_another_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="frame 'unit'"):
        cells.box_shares(Box(0, 0, 1, 1, "unit"), (56, 56), 28)


masks = st.tuples(st.integers(2, 7), st.integers(2, 7), st.randoms(use_true_random=False)).map(
    lambda t: np.array([[t[2].random() < 0.15 for _ in range(t[1])] for _ in range(t[0])])
)


def shapes(mask: np.ndarray) -> list[tuple[tuple[int, int], ...]]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    parts = [np.argwhere(labels == n + 1) for n in range(count)]
    return sorted(tuple(map(tuple, part - part.min(axis=0))) for part in parts)


@given(st.lists(masks, min_size=1, max_size=3), st.integers(1, 4), st.text(max_size=5))
@settings(max_examples=200, deadline=None)
def test_controls_have_the_same_cells_elsewhere(region: list[np.ndarray], count: int, seed: str) -> None:
    found = cells.controls(tuple(region), count, seed)
    assert len(found) <= count
    for control in found:
        for before, after in zip(region, control, strict=True):
            assert before.shape == after.shape and before.sum() == after.sum() and not (before & after).any()
    again = cells.controls(tuple(region), count, seed)
    assert all(
        np.array_equal(a, b) for one, two in zip(found, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_a_control_keeps_the_shape_of_a_part() -> None:
    region = np.zeros((6, 6), dtype=bool)
    region[0, :2] = region[1, 0] = True  # an L of three cells
    for (control,) in cells.controls((region,), 4, "q"):
        assert shapes(control) == shapes(region)


def test_no_control_where_nothing_fits() -> None:
    assert cells.controls((np.ones((3, 3), dtype=bool),), 2, "q") == []
    most = np.ones((3, 3), dtype=bool)
    most[0, 0] = False
    assert cells.controls((most,), 2, "q") == []


def test_another_seed_gives_another_region() -> None:
    region = np.zeros((9, 9), dtype=bool)
    region[4, 4] = True
    places = {tuple(np.argwhere(cells.controls((region,), 1, str(n))[0][0])[0]) for n in range(20)}
    assert len(places) > 10
    assert not np.array_equal(*(cells.random_cells([(9, 9)], 0.5, seed)[0] for seed in "ab"))


def test_random_cells_have_about_their_share() -> None:
    (mask,) = cells.random_cells([(60, 50)], 0.6, "q")
    assert mask.shape == (60, 50) and abs(mask.mean() - 0.6) < 0.03


def test_a_small_image_has_a_random_cell_and_larger_ones_keep_theirs() -> None:
    """One cell at a probability of 0.05; in a grid of 16 at 0.6 the cells are those of the draws alone."""
    for seed in map(str, range(50)):
        (one,), (two,) = cells.random_cells([(1, 1)], 0.05, seed), cells.random_cells([(1, 2)], 0.05, seed)
        assert one.tolist() == [[True]] and two.sum() >= 1
        rng = random.Random(f"{seed}:patches")
        drawn = [rng.random() < 0.6 for _ in range(16 + 6)]
        first, second = cells.random_cells([(4, 4), (2, 3)], 0.6, seed)
        assert first.flatten().tolist() == drawn[:16] and second.flatten().tolist() == (
            drawn[16:] if any(drawn[16:]) else second.flatten().tolist()
        )


def test_growing_and_the_ring() -> None:
    region = np.zeros((5, 6), dtype=bool)
    region[0, 1] = True
    (grown,) = cells.dilated((region,), 1)
    assert grown.astype(int).tolist()[:3] == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6]
    assert np.array_equal(cells.ring(region), grown & ~region)
    assert cells.dilated((region,), 0)[0] is region
