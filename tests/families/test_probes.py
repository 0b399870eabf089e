"""Counterfactual images, for each family: a blanked image is the processor's output for an edited file, and no more is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from fgrpo.boxes import PixelBounds, model_size
from fgrpo.images import open_rgb
from fgrpo.policy import blanked_pixels, cells, loading, model_files
from fgrpo.policy.backbone import Backbone
from fgrpo.schema_rl import Probing
from fgrpo.types import Box, Sample
from judges.base import JudgeSet
from rewards.base import RewardContext
from rl.probes.base import Batch, Rollouts
from rl.probes.passes import Passes

ROWS, COLUMNS = 3, 4


@pytest.fixture
def pair(policy: Path, family: Backbone, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """An image file of the size that the model sees, the same file with cells blackened, and these cells."""
    bounds = model_files.pixel_bounds(policy)
    factor = bounds.factor
    size = model_size((COLUMNS * factor, ROWS * factor), *bounds)
    assert model_size(size, *bounds) == size
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    chosen = np.zeros(cells.grid(size, factor), dtype=bool)
    chosen[1, 2] = chosen[2, 0] = chosen[0, 1] = True
    edited = pixels.copy()
    for row, column in np.argwhere(chosen):
        edited[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor] = 0
    files = tmp_path / "whole.png", tmp_path / "edited.png"
    for file, array in zip(files, (pixels, edited), strict=True):
        Image.fromarray(array).save(file)
    return (*files, chosen)


def test_blanked_pixels_are_those_of_an_edited_file(policy: Path, family: Backbone, pair: Any) -> None:
    whole, edited, chosen = pair
    model, processor = loading.load_policy(policy)
    given = processor.image_processor(images=[open_rgb(whole), open_rgb(edited)], return_tensors="pt")
    grids = given[family.grid_field]
    assert torch.equal(grids[0], grids[1])
    before, after = given["pixel_values"].chunk(2)
    per_cell = family.patches_per_token(family.vision_tower(model))
    black = blanked_pixels.black(processor.image_processor)
    kept = given["pixel_values"].clone()
    found = blanked_pixels.blanked(given["pixel_values"], grids, per_cell, [chosen, None], "black", black)
    assert torch.equal(given["pixel_values"], kept), "the batch's own pixels stay"
    assert torch.allclose(found[: len(before)], after, atol=1e-5) and torch.equal(found[len(before) :], after)
    assert not torch.allclose(before, after)
    with pytest.raises(ValueError, match="cells of shape"):
        blanked_pixels.blanked(before, grids[:1], per_cell, [chosen.T], "zero")


def test_the_colour_of_the_ring(policy: Path, family: Backbone, pair: Any) -> None:
    """By hand from the image file: the mean colour of the eight cells around one cell, normalised."""
    whole, _, _ = pair
    model, processor = loading.load_policy(policy)
    of_images = processor.image_processor
    factor = model_files.pixel_bounds(policy).factor
    given = of_images(images=[open_rgb(whole)], return_tensors="pt")
    grid = given[family.grid_field]
    per_cell = family.patches_per_token(family.vision_tower(model))
    chosen = np.zeros(tuple(int(n) // round(per_cell**0.5) for n in grid[0, 1:]), dtype=bool)
    chosen[1, 1] = True
    found = blanked_pixels.blanked(given["pixel_values"], grid, per_cell, [chosen], "ring")
    first = np.flatnonzero(chosen)[0] * per_cell
    pixels = np.asarray(open_rgb(whole), dtype=np.float64)[: 3 * factor, : 3 * factor] / 255
    around = np.ones(pixels.shape[:2], dtype=bool)
    around[factor : 2 * factor, factor : 2 * factor] = False
    colour = (pixels[around].mean(axis=0) - np.array(of_images.image_mean)) / np.array(of_images.image_std)
    for channel, values in enumerate(found[first].view(3, -1)):
        assert values.numpy() == pytest.approx(colour[channel], abs=1e-4)
    zero = blanked_pixels.blanked(given["pixel_values"], grid, per_cell, [chosen], "zero")
    assert not zero[first : first + per_cell].any() and (zero[:first] == given["pixel_values"][:first]).all()


def test_a_blanked_cell_changes_its_own_feature(policy: Path, family: Backbone, pair: Any) -> None:
    whole, _, _ = pair
    model, processor = loading.load_policy(policy)
    given = processor.image_processor(images=[open_rgb(whole)], return_tensors="pt")
    grid = given[family.grid_field]
    tower = family.vision_tower(model)
    per_cell = family.patches_per_token(tower)
    shape = tuple(int(n) // round(per_cell**0.5) for n in grid[0, 1:])
    with torch.no_grad():
        (before,) = family.image_features(model, given["pixel_values"], grid)
        for cell in (0, 5, shape[0] * shape[1] - 1):
            chosen = np.zeros(shape, dtype=bool)
            chosen.flat[cell] = True
            pixels = blanked_pixels.blanked(given["pixel_values"], grid, per_cell, [chosen], "zero")
            (after,) = family.image_features(model, pixels, grid)
            moved = (after - before).norm(dim=-1)
            others = torch.cat([moved[:cell], moved[cell + 1 :]])
            print(f"{family.model_type}: own feature {moved[cell]:.3f}, others at most {others.max():.4f}")
            assert moved[cell] > OWN * others.max() and moved[cell] > 0.1 * before[cell].norm()


OWN = 10.0  # how many times more than any other feature


@pytest.mark.parametrize("rows", ["shared", "by_length"])
def test_log_probabilities_are_those_of_a_pass_on_the_edited_file(
    make: Any, policy: Path, family: Backbone, pair: Any, rows: str
) -> None:
    """The same token ids and grid; only the image differs."""
    whole, edited, chosen = pair
    trainer = make(steps=1)
    trainer.rows = rows
    (prompt,) = (row["prompt"] for row in list(trainer.train_dataset)[:1])
    texts = [prepare_multimodal_messages(prompt, images=[open_rgb(file)]) for file in (whole, edited)]
    ids, images, given = trainer._tokenize_prompts(texts)
    assert list(ids[0]) == list(ids[1])
    token = family.image_token_id(trainer.plain_model.config)
    response = torch.arange(40, 52)
    ids_BL = torch.cat([torch.tensor([list(ids[0])]), response[None]], dim=1)
    mask_BL = torch.ones_like(ids_BL)
    half = len(given["pixel_values"]) // 2
    grids = torch.as_tensor(given[family.grid_field])
    assert torch.equal(grids[0], grids[1]) and len(images) == 2

    def fields(pixels: Any) -> dict[str, Any]:
        return {
            "pixel_values": torch.as_tensor(pixels), family.grid_field: grids[:1], "num_images": [1],
            "mm_token_type_ids": (ids_BL == token).long(),
        }  # fmt: skip

    context = RewardContext(JudgeSet(None), probing=Probing(fill="black"))  # type: ignore[arg-type]
    batch = Batch(
        Rollouts((), (), (), context), ids_BL, mask_BL, len(response), 4, fields(given["pixel_values"][:half])
    )
    passes = Passes(trainer, batch)
    trainer.model.train()
    changed = passes.changed({0: (chosen,)})
    with torch.no_grad():
        expected, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids_BL, mask_BL, len(response), 4, **fields(given["pixel_values"][half:])
        )
    assert (changed - expected).abs().max() < 1e-5
    assert (changed - passes.original([0])).abs().max() > 1e-4, "the edit matters"
    assert trainer.model.training


def test_cells_of_boxes_fit_the_processors_grid(policy: Path, family: Backbone, pair: Any) -> None:
    """The geometry in pixels of the model, against the grid that the processor gives, for an image of another size."""
    _, processor = loading.load_policy(policy)
    file = pair[0].with_name("other.png")
    Image.new("RGB", (301, 173)).save(file)
    bounds = PixelBounds(*model_files.pixel_bounds(policy))
    sample = Sample("vgr/train/0", (str(file),), "?", (), "", (Box(0.5, 0.5, 1, 1, "unit"),))
    (shares,) = cells.sample_shares(sample, bounds) or ()
    grid = processor.image_processor(images=[open_rgb(file)], return_tensors="pt")[family.grid_field][0]
    assert shares.shape == (int(grid[1]) // 2, int(grid[2]) // 2)
    assert shares.sum() == pytest.approx(shares.size / 4)
