"""Attention inside the annotated boxes, for each family: against attention matrices, and for a layer that attends to all alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.policy import cells, model_files
from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.policy.backbone import Backbone
from fgrpo.response import parse
from fgrpo.schema_rl import Probing
from fgrpo.types import Box, Sample
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem
from rewards.probes import Absent
from rl.probes import maps
from rl.probes.attention import PROBE
from rl.probes.base import Batch, Rollouts
from rl.probes.passes import Passes
from tests.rl.test_shared_prefix import batch_of

LENGTHS = [[5, 3], [4, 6]]  # questions with one and with two pictures


def prepared(make: Any, policy: Path, family: Backbone, most: int = 3, **options: Any) -> tuple[Any, Batch, list[Any]]:
    """A trainer, a batch of four rollouts, and the cells of their boxes; the last question has boxes in its second picture."""
    trainer = make(steps=1, overrides=("rl.max_response_length=12",))
    made = batch_of(trainer, LENGTHS)
    bounds = model_files.pixel_bounds(policy)
    items, regions = [], []
    table = trainer.train_dataset.with_format(None)
    known = [Sample.from_dict(json.loads(text)) for text in table[:]["sample"]]
    for count, group in enumerate(LENGTHS, start=1):
        images = next(s.images for s in known if len(s.images) == count)
        boxes = (Box(0.3, 0.3, 0.6, 0.9, "unit"), Box(0.0, 0.0, 0.1, 0.1, "unit"))
        sample = Sample(f"vgr/train/{count}", images, "?", (), "", boxes, {"box_images": [count - 1] * 2})
        regions += [cells.touched(cells.sample_shares(sample, bounds) or ())] * len(group)
        items += [RewardItem(str(n), sample, parse("")) for n in group]
    context = RewardContext(
        JudgeSet(None),
        min_pixels=bounds[0],
        max_pixels=bounds[1],
        patch_factor=bounds.factor,
        probing=Probing(**options),  # type: ignore[arg-type]
    )
    keys = ("pixel_values", family.grid_field, "num_images", "mm_token_type_ids")
    batch = Batch(
        Rollouts(tuple(items), ("",) * 4, ((),) * 4, context),
        torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1),
        torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1),
        made["completion_ids"].shape[1],
        most,
        {key: made[key] for key in keys},
    )
    return trainer, batch, regions


def measured(trainer: Any, batch: Batch) -> list[Any]:
    return [one["attention"] for one in PROBE.measure(frozenset({"attention"}), batch, Passes(trainer, batch))]


@pytest.mark.parametrize("layers", ["two_thirds", "all"])
def test_shares_are_those_of_attention_matrices(make: Any, policy: Path, family: Backbone, layers: Any) -> None:
    """Rows padded on both sides, one and two pictures; the token at place t is predicted one position before."""
    trainer, batch, regions = prepared(make, policy, family, layers=layers)
    found = measured(trainer, batch)
    model = trainer.plain_model
    kept = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    fields = {key: value for key, value in batch.fields.items() if key != "num_images"}
    with torch.no_grad():
        out = model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, output_attentions=True, **fields)
    model.set_attn_implementation(kept)
    chosen = chosen_layers(model.config.get_text_config(), layers)
    prompt = batch.ids_BL.shape[1] - batch.completion
    is_image = batch.ids_BL == family.image_token_id(model.config)
    for row, shares in enumerate(found):
        flat = torch.from_numpy(np.concatenate([part.flatten() for part in regions[row]]))
        columns = is_image[row].nonzero()[:, 0]
        assert len(columns) == len(flat) and 0 < flat.sum() < len(flat)
        expected = []
        for t in range(batch.lengths()[row]):
            rows = torch.stack([out.attentions[layer][row, :, prompt - 1 + t] for layer in chosen])
            share = rows[..., columns[flat]].sum(-1) / rows[..., columns].sum(-1)
            expected.append(float(share.mean()))
        assert shares == pytest.approx(expected, abs=1e-5)
    assert len({round(share, 4) for shares in found for share in shares}) > 8


def test_a_layer_that_attends_to_all_alike_gives_the_share_of_the_area(
    make: Any, policy: Path, family: Backbone
) -> None:
    trainer, batch, regions = prepared(make, policy, family, most=8)
    language = getattr(trainer.plain_model.model, family.language)
    (layer,) = chosen_layers(trainer.plain_model.config.get_text_config(), "two_thirds")
    with torch.no_grad():
        for parameter in language.layers[layer].self_attn.q_proj.parameters():
            parameter.zero_()
    for shares, region in zip(measured(trainer, batch), regions, strict=True):
        area = sum(part.sum() for part in region) / sum(part.size for part in region)
        assert shares == pytest.approx([area] * len(shares), abs=1e-6)


def test_rollouts_without_boxes_have_no_share(make: Any, policy: Path, family: Backbone) -> None:
    trainer, batch, _ = prepared(make, policy, family)
    whole = measured(trainer, batch)
    items = list(batch.rollouts.items)
    bare = Sample("vgr/train/9", items[1].sample.images, "?", (), "")
    items[1] = RewardItem("1", bare, parse(""))
    rollouts = Rollouts(tuple(items), batch.rollouts.texts, batch.rollouts.ids, batch.rollouts.context)
    found = measured(trainer, Batch(rollouts, *list(vars(batch).values())[1:]))
    assert isinstance(found[1], Absent) and found[1].cause == "no_boxes"
    assert [found[n] == pytest.approx(whole[n], abs=1e-6) for n in (0, 2, 3)] == [True] * 3


def test_attention_that_cannot_be_read_is_refused_before_the_first_step(
    make: Any, policy: Path, family: Backbone
) -> None:
    trainer, batch, _ = prepared(make, policy, family)
    PROBE.check(trainer, batch.rollouts.context)
    config = trainer.plain_model.config.get_text_config()
    kept, config._attn_implementation = config._attn_implementation, "paged"
    try:
        with pytest.raises(UserError, match="'paged' cannot be read"):
            PROBE.check(trainer, batch.rollouts.context)
    finally:
        config._attn_implementation = kept
    trainer.args.torch_compile = True
    with pytest.raises(UserError, match="attention of a compiled model cannot be read"):
        PROBE.check(trainer, batch.rollouts.context)
    trainer.args.torch_compile = False
    bounds = PixelBounds(*model_files.pixel_bounds(policy))
    none = RewardContext(JudgeSet(None), patch_factor=bounds.factor, probing=Probing(layers=(99,)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layer 99 does not exist"):
        PROBE.check(trainer, none)


@pytest.mark.parametrize(("row", "pictures"), [(1, 1), (2, 2)])
def test_maps_are_those_of_attention_matrices(
    make: Any, policy: Path, family: Backbone, monkeypatch: Any, row: int, pictures: int
) -> None:
    """The mean over the rows that predict the response's tokens, and the row of `<|focus|>`, over one and two pictures.

    A token of the template stands for `<|focus|>` here. It occurs twice, and the last place counts.
    """
    trainer, whole, _ = prepared(make, policy, family)
    passes = Passes(trainer, whole)
    ids_BL, prompt = whole.ids_BL[[row]].clone(), whole.ids_BL.shape[1] - whole.completion
    token = int(ids_BL[0, prompt - 3])
    ids_BL[0, prompt - 2] = token
    assert int(ids_BL[0, prompt - 1]) != token
    given = passes.chunk([row])
    batch = Batch(whole.rollouts, ids_BL, whole.mask_BL[[row]], whole.completion, 1, given)
    assert given["num_images"] == [pictures]
    monkeypatch.setattr(maps.focus, "focus_id", lambda _: token)
    found = maps.attention_maps(batch, Passes(trainer, batch), "last_third")
    monkeypatch.setattr(maps.focus, "focus_id", lambda _: None)
    without = maps.attention_maps(batch, Passes(trainer, batch), "last_third")
    assert without.focus is None
    model = trainer.plain_model
    kept = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    fields = {key: value for key, value in given.items() if key != "num_images"}
    with torch.no_grad():
        out = model(input_ids=ids_BL, attention_mask=batch.mask_BL, output_attentions=True, **fields)
    model.set_attn_implementation(kept)
    chosen = chosen_layers(model.config.get_text_config(), "last_third")
    assert found.layers == tuple(chosen)
    columns = (ids_BL[0] == family.image_token_id(model.config)).nonzero()[:, 0]
    length = batch.lengths()[0]
    rows_LHQK = torch.stack([out.attentions[layer][0] for layer in chosen])
    on_image = rows_LHQK[..., columns].sum(-1)
    shares = rows_LHQK[..., columns] / on_image[..., None]
    response = slice(prompt - 1, prompt - 1 + length)
    for grids, expected in (
        (found.response, shares[:, :, response].mean(dim=(0, 1, 2))),
        (without.response, shares[:, :, response].mean(dim=(0, 1, 2))),
        (found.focus, shares[:, :, prompt - 2].mean(dim=(0, 1))),
    ):
        assert grids is not None and len(grids) == pictures
        assert [part.shape for part in grids] == passes.shapes(row)
        flat = np.concatenate([part.flatten() for part in grids])
        assert flat == pytest.approx(expected.numpy(), abs=1e-6) and flat.sum() == pytest.approx(1.0, abs=1e-5)
    assert found.on_image == pytest.approx(float(on_image[:, :, response].mean()), abs=1e-6)
