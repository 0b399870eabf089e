"""The attention tap of every family: its rows are those of eager attention, its gradients those of a run without checkpointing."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fgrpo.errors import UserError
from fgrpo.images import open_rgb
from fgrpo.policy import loading
from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.policy.attention_sums import Rows
from fgrpo.policy.attention_tap import AttentionTap, refuse_compiled
from fgrpo.policy.backbone import Backbone
from fgrpo.training import packed_inputs, shared_prefix
from fgrpo.training.row_images import RowImages
from miniworld import questions
from miniworld.render import render
from tests.rl.test_shared_prefix import use_attention

__all__ = ["use_attention"]
QUERIES = 3  # the last tokens of each row


@pytest.fixture(scope="module")
def batch(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three prompts of different lengths, padded on the left, with one, two and one images of two sizes."""
    torch.set_num_threads(1)
    folder, rng, processor = tmp_path_factory.mktemp("pictures"), random.Random(5), loading.load_processor(policy)
    texts, images = [], []
    for n, kind in enumerate(["hrel", "view", "count"]):
        question = questions.make(kind, rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            picture: Image.Image = render(scene, rng)
            picture.resize((224, 96) if n == 2 else picture.size).save(folder / f"{n}-{k}.png")
            paths.append(str(folder / f"{n}-{k}.png"))
        texts.append(loading.render_prompt(processor, paths, question.text, "<think>"))
        images.append([open_rgb(path) for path in paths])
    assert sorted(map(len, images)) == [1, 1, 2]
    made = dict(processor(text=texts, images=images, return_tensors="pt", padding=True))
    assert (made["attention_mask"] == 0).any(), "a padded row"
    return made


def model_of(policy: Path) -> Any:
    return loading.load_policy(policy)[0]


def rows_of(model: Any, family: Backbone, batch: dict[str, Any]) -> list[Rows]:
    """The last tokens of each row; the evidence is every other image token."""
    is_image = batch["input_ids"] == family.image_token_id(model.config)
    last = torch.arange(batch["input_ids"].shape[1] - QUERIES, batch["input_ids"].shape[1])
    columns = [row.nonzero().flatten() for row in is_image]
    return [Rows(last, image, image[::2]) for image in columns]


def every_layer(model: Any) -> list[int]:
    return chosen_layers(model.config.get_text_config(), "all")


def check_equal(found: dict[int, Any], attentions: Any, rows: list[Rows]) -> None:
    for layer, sums in found.items():
        for b, row in enumerate(rows):
            whole_HQL = attentions[layer][b][:, row.queries]
            of_image = whole_HQL[..., row.image]
            share = of_image.sum(-1)
            assert (sums[b].image_share - share).abs().max() < 1e-6
            assert (sums[b].evidence_share - whole_HQL[..., row.evidence].sum(-1) / share).abs().max() < 1e-6
            assert (sums[b].image_HQI.exp() - of_image / share[..., None]).abs().max() < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_rows_equal_eager_attention(policy, family, batch, use_attention, attention: str) -> None:
    eager = model_of(policy)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(**batch, output_attentions=True).attentions
    model = model_of(policy)
    rows = rows_of(model, family, batch)
    use_attention(model, attention)
    with torch.no_grad():
        plain = model(**batch).logits
        with AttentionTap(model, every_layer(model)) as tap:
            other = model(**batch).logits
            with tap.read(rows, keep_image=True) as reading:
                read = model(**batch).logits
    assert torch.equal(plain, read) and torch.equal(plain, other), "the tap changes nothing"
    assert len(reading.passes) == 1 and sorted(reading.passes[0]) == every_layer(model)
    check_equal(reading.passes[0], attentions, rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_rows_that_share_their_prompt(policy, family, batch, use_attention, attention: str) -> None:
    """A packed row of two responses to each prompt: a response token's attention is that of its own padded row."""
    model = model_of(policy)
    image_token = family.image_token_id(model.config)
    responses = torch.randint(20, 200, (6, 4), generator=torch.Generator().manual_seed(1))
    prompts = [0, 0, 1, 1, 2, 2]
    ids_BL = torch.cat([batch["input_ids"][prompts], responses], dim=1)
    mask_BL = torch.cat([batch["attention_mask"][prompts], torch.ones_like(responses)], dim=1)
    counts = [1, 2, 1]
    of_three = RowImages({**batch, "num_images": counts}, family.grid_field)
    fields = {**of_three.of(prompts), "num_images": [counts[p] for p in prompts]}
    images = RowImages(fields, family.grid_field)
    width = ids_BL.shape[1]
    of_image = [(row == image_token).nonzero().flatten() for row in ids_BL]
    padded_rows = [Rows(torch.arange(width - 4, width), columns, columns[::2]) for columns in of_image]
    types = (ids_BL == image_token).int()
    use_attention(model, attention)
    chosen = shared_prefix.packs(ids_BL, mask_BL, 4, images.same)
    layout, given = packed_inputs.packed_inputs(model, family, images, chosen, ids_BL, mask_BL, 4)
    packed_rows = []
    if len(layout.ids_UL) == 1:
        assert attention == "flash_attention_2" and len(chosen) == 3
    packs_of_row = [range(3)] if len(layout.ids_UL) == 1 else [range(n, n + 1) for n in range(3)]
    for u, packs in enumerate(packs_of_row):  # every response token; the mask keeps other prompts' images out
        queries = torch.cat([torch.arange(b.stop - 4, b.stop) for n in packs for b in layout.spans[n][1]])
        spans = [layout.spans[n][0] for n in packs]
        columns = [s.start + (layout.ids_UL[u, s.start : s.stop] == image_token).nonzero().flatten() for s in spans]
        packed_rows.append(Rows(queries, torch.cat(columns), torch.cat([c[::2] for c in columns])))
    given.pop("labels")
    with torch.no_grad(), AttentionTap(model, every_layer(model)) as tap:
        with tap.read(padded_rows) as padded:
            pixels = {key: fields[key] for key in ("pixel_values", family.grid_field)}
            model(input_ids=ids_BL, attention_mask=mask_BL, mm_token_type_ids=types, **pixels)
        with tap.read(packed_rows) as packed:
            model(**given)
    for layer in every_layer(model):
        one, other = padded.passes[0][layer], packed.passes[0][layer]
        for name in ("image_share", "evidence_share"):
            whole = torch.cat([getattr(sums, name) for sums in other], dim=-1)
            wanted = torch.cat([getattr(sums, name) for sums in one], dim=-1)
            assert whole.shape == wanted.shape and (whole - wanted).abs().max() < 1e-6


def loss_of(reading: Any) -> torch.Tensor:
    return torch.stack(
        [sums.image_HQI.exp()[..., 0].sum() for of_row in reading.passes[0].values() for sums in of_row]
    ).sum()


def gradients(policy: Path, family: Backbone, batch: dict[str, Any], checkpointing: bool) -> list[torch.Tensor]:
    """Of a loss of the tap's rows alone, and of the same loss with the model's own."""
    found = []
    for own in (0.0, 1.0):
        model = model_of(policy).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with AttentionTap(model, [1, 2], gradient=True) as tap:
            with tap.read(rows_of(model, family, batch), keep_image=True) as reading:
                out = model(**batch, labels=batch["input_ids"])
            loss = loss_of(reading) + own * out.loss
            loss.backward()
        found += [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return found


def test_gradients_under_checkpointing(policy: Path, family: Backbone, batch: dict[str, Any]) -> None:
    plain, again = (gradients(policy, family, batch, checkpointing) for checkpointing in (False, True))
    assert len(plain) == len(again) > 60
    assert max(float(part.abs().max()) for part in plain[1:]) > 1e-3
    for one, other in zip(plain, again, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)


def test_each_pass_in_the_block_is_read(policy: Path, family: Backbone, batch: dict[str, Any]) -> None:
    """Without evidence, whose share is then 0, and without an image: any tokens can stand for one."""
    model = model_of(policy)
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    image_token = family.image_token_id(model.config)
    text["input_ids"] = torch.where(text["input_ids"] == image_token, 7, text["input_ids"])
    none = torch.tensor([], dtype=torch.long)
    rows = [Rows(torch.tensor([len(row) - 1]), (row == 7).nonzero().flatten(), none) for row in text["input_ids"]]
    with torch.no_grad(), AttentionTap(model, [0]) as tap, tap.read(rows) as reading:
        model(**text)
        model(**{key: value.flip(0) for key, value in text.items()})
    first, second = (found[0] for found in reading.passes)
    assert all(bool((sums.evidence_share == 0).all()) and sums.image_HQI is None for sums in first)
    assert len(first) == len(second) == 3 and not torch.equal(first[0].every_HQ, second[0].every_HQ)


def test_uniform_attention_gives_the_share_of_the_area(policy: Path, family: Backbone, batch: dict[str, Any]) -> None:
    model = model_of(policy)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "q_proj.bias", "q_norm.weight")):
            parameter.data.zero_()
    rows = rows_of(model, family, batch)
    with torch.no_grad(), AttentionTap(model, every_layer(model)) as tap, tap.read(rows) as reading:
        model(**batch)
    for sums in reading.passes[0].values():
        for b, row in enumerate(rows):
            assert torch.allclose(sums[b].evidence_share, torch.tensor(len(row.evidence) / len(row.image)), atol=1e-6)
            seen = batch["attention_mask"][b].cumsum(0)[row.queries]
            assert torch.allclose(sums[b].image_share, len(row.image) / seen.expand_as(sums[b].image_share), atol=1e-6)


def test_another_model_and_the_registry_stay_as_they_are(policy: Path, family: Backbone, batch: dict[str, Any]) -> None:
    model, reference = model_of(policy), model_of(policy)
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    with torch.no_grad(), AttentionTap(model, [1]) as tap:
        with tap.read(rows_of(model, family, batch)) as reading:
            reference(**batch)
        assert reading.passes == [], "not of another model"
        rows = rows_of(model, family, batch)
        with AttentionTap(reference, [0]) as inner, inner.read(rows) as own, tap.read(rows) as reading:
            reference(**batch)
            model(**batch)
        assert [sorted(found) for found in (own.passes[0], reading.passes[0])] == [[0], [1]]
    assert dict(ALL_ATTENTION_FUNCTIONS._local_mapping) == before
    assert not model._forward_pre_hooks and not tap.language._forward_pre_hooks


def test_what_cannot_be_read_is_refused(policy: Path, family: Backbone, batch: dict[str, Any]) -> None:
    model = model_of(policy)
    rows, text_config = rows_of(model, family, batch), model.config.get_text_config()
    with pytest.raises(UserError, match="layers 0 to 3"):
        chosen_layers(text_config, [4])
    with pytest.raises(UserError, match="each named once"):
        chosen_layers(text_config, [])
    kinds = text_config.layer_types if hasattr(text_config, "layer_types") else None
    text_config.layer_types = ["linear_attention", "full_attention"] * 2
    with pytest.raises(UserError, match=r"linear_attention\); layers that have: 1, 3"):
        AttentionTap(model, [2])
    assert chosen_layers(text_config, "all") == [1, 3] and chosen_layers(text_config, "last_third") == [3]
    text_config.layer_types = kinds or ["full_attention"] * 4
    assert chosen_layers(text_config, "two_thirds") == [2]

    text_config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="'flex_attention' cannot be read; use one of sdpa"):
        AttentionTap(model, [1])
    text_config._attn_implementation = "sdpa"
    model.gradient_checkpointing_enable({"use_reentrant": True})
    AttentionTap(model, [1])
    with pytest.raises(UserError, match="reentrant"):
        AttentionTap(model, [1], gradient=True)
    model.gradient_checkpointing_disable()
    with AttentionTap(model, [1], gradient=True) as tap, tap.read(rows):
        model.train()
        with torch.no_grad():
            model(**batch)
        model.gradient_checkpointing_enable({"use_reentrant": True})
        with pytest.raises(UserError, match="reentrant"):
            model(**batch)
        model.gradient_checkpointing_disable()
        model.eval()
        length = batch["input_ids"].shape[1]
        packed = torch.arange(length).view(1, 1, -1).expand(4, 3, -1)
        with pytest.raises(UserError, match="four rows"):
            model(**{**batch, "position_ids": packed})
        with pytest.raises(UserError, match="cu_seq_lens_q"):
            model(**batch, cu_seq_lens_q=torch.tensor([0, length]))
    with AttentionTap(model, [1]) as tap, tap.read(rows[:2]), pytest.raises(ValueError, match="given for 2 rows"):
        model(**batch)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        with AttentionTap(model, [1]) as tap, tap.read(rows), pytest.raises(UserError, match="generation"):
            model.model.language_model(
                inputs_embeds=torch.zeros(3, 1, model.config.get_text_config().hidden_size), past_key_values=cache
            )
    with AttentionTap(model, [1]) as tap, tap.read(rows), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.compiler, "is_compiling", lambda: True
        )  # as within a compiled wrapper, which the tap does not see
        with pytest.raises(UserError, match="compiled"):
            model(**batch)
    with pytest.raises(UserError, match=r"leave torch\.compile \(torch_compile\) out"):
        refuse_compiled(SimpleNamespace(torch_compile=True))
    refuse_compiled(SimpleNamespace(torch_compile=False))
    model.model.language_model.layers[0].compile()
    with pytest.raises(UserError, match="compiled"):
        AttentionTap(model, [1])
