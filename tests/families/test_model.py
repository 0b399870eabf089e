"""The decoder, kept features and shared rows of every family: equal to the library's own passes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from fgrpo.images import open_rgb
from fgrpo.inference.base import Request
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.policy import adapters, loading
from fgrpo.policy.backbone import Backbone
from fgrpo.schema_base import Lora
from miniworld import questions
from miniworld.render import render
from ops.memory_estimate import shape_of
from rl.dry_run import DryRun
from rl.in_process_trainer import FeatureMemo
from rl.passes import LogprobPasses
from rl.preflight import TOLERANCE
from rl.trainer import FaithfulGRPOTrainer
from tests.rl.test_shared_prefix import batch_of, check_equal, passed, use_attention

__all__ = ["use_attention"]
LENGTHS = [[5, 9, 1, 4], [8, 2, 6]]


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """Greedy requests with one and two pictures, of two sizes, and one without."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(5)
    made = []
    for n, kind in enumerate(["hrel", "view", "count", "moved"]):
        question, paths = questions.make(kind, rng), []
        for k, scene in enumerate(question.scenes):
            picture = render(scene, rng)
            picture.resize((224, 96) if n == 2 else picture.size).save(folder / f"{n}-{k}.png")
            paths.append(str(folder / f"{n}-{k}.png"))
        made.append(Request(tuple(paths), question.text, "<think>", max_new_tokens=16, temperature=0.0))
    return [*made, replace(made[0], images=())]


def test_greedy_decoding_equals_the_librarys_generate(policy: Path, requests: list[Request]) -> None:
    torch.set_num_threads(1)
    sampler = TransformersSampler.load(policy)
    forbidden = list(sampler.vocabulary.forbidden)

    async def ask() -> list[Any]:
        return [await sampler.sample(r) for r in requests], await asyncio.gather(*map(sampler.sample, requests))

    alone, together = asyncio.run(ask())
    for request, (one,), (other,) in zip(requests, alone, together, strict=True):
        assert one.token_ids == other.token_ids, "batching changes nothing"
        text = loading.render_prompt(sampler.processor, request.images, request.text, request.prefix)
        pictures = [open_rgb(path) for path in request.images] or None
        inputs = sampler.processor(text=[text], images=pictures, return_tensors="pt")
        ids = sampler.model.generate(**inputs, max_new_tokens=16, do_sample=False, suppress_tokens=forbidden)
        row = ids[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(one.token_ids) == row[: len(one.token_ids)] and len(one.token_ids) > 1
    first, blind = together[0][0].logprobs, together[-1][0].logprobs
    assert abs(first[0] - blind[0]) > 1e-4, "the picture matters"


def test_rollouts_and_trainer_agree_on_log_probabilities(make: Any, family: Backbone) -> None:
    """On every token of fresh rollouts, as the preflight checks it."""
    trainer = make(steps=1, overrides=("rl.max_response_length=24",))
    rows = [row for n in (1, 2) for row in trainer.train_dataset if len(row["images"]) == n][:4]
    batch, engine = DryRun(trainer).rollout(rows)
    mask = batch["completion_mask"].bool()
    difference = (DryRun(trainer).logprobs(batch) - engine)[mask].abs()
    print(
        f"{family.model_type}: {len(difference)} tokens, mean {difference.mean():.1e}, largest {difference.max():.1e}"
    )
    assert len(difference) > 100 and difference.max() < 2e-4 < TOLERANCE["fp32"]


def test_the_plain_trainer_trains(make: Any, family: Backbone) -> None:
    """Rollouts by the library's own `generate`, as under DeepSpeed; only what is not frozen moves."""
    trainer = make(steps=2, kind=FaithfulGRPOTrainer, tweak={"save_strategy": "no", "learning_rate": 1e-3})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
    assert trainer.state.global_step == 2 and moved and not any(map(family.is_vision, moved))


def test_kept_features_equal_computed_ones(policy: Path, family: Backbone, requests: list[Request]) -> None:
    """All that the language model gets of an image, features of several vision layers included."""
    model, processor = loading.load_policy(policy)
    loading.freeze_vision(model, projector=True)
    pictures = [open_rgb(request.images[0]) for request in requests[:3]]
    inputs = processor.image_processor(images=pictures, return_tensors="pt")
    pixels, grids = inputs["pixel_values"], inputs[family.grid_field]
    plain = family.image_features(model, pixels, grids)
    tower, memo = family.vision_tower(model), FeatureMemo()
    raw = tower(pixels, grid_thw=grids)
    again = family.tower_output(tower, family.tower_features(raw))
    for key, value in again.items():
        pairs = zip(value, raw[key], strict=True) if isinstance(value, (list, tuple)) else [(value, raw[key])]
        assert all(torch.equal(one, other) for one, other in pairs)
    memo.install(tower, family)
    calls: list[int] = []
    tower.patch_embed.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    for _ in range(2):
        kept = family.image_features(model, pixels, grids)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(kept, plain, strict=True))
    assert calls == [len(pixels)], "each picture goes through the tower once"
    assert {part.shape[1] for part in kept} == {plain[0].shape[1]}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_a_shared_prompt_changes_nothing(make: Any, use_attention: Any, attention: str) -> None:
    """Log-probabilities, entropies, loss and gradients of rollouts that share a row, and of rows by length, are those of TRL."""
    trainer = make(overrides=("rl.max_response_length=12",))
    use_attention(trainer.plain_model, attention)
    batch = batch_of(trainer, LENGTHS)
    theirs = passed(GRPOTrainer, trainer, batch)
    widths: list[Any] = []
    trainer.plain_model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape), with_kwargs=True
    )
    check_equal(passed(LogprobPasses, trainer, batch), theirs)
    whole = len(batch["prompt_ids"]) * (batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1])
    assert sum(rows * tokens for rows, tokens in widths) < whole / 1.5
    trainer.rows = "by_length"
    check_equal(passed(LogprobPasses, trainer, batch), theirs)


def test_a_trained_projector_gets_the_gradients_of_trls_rows(make: Any, family: Backbone) -> None:
    """SFT and RL may train the projectors: image features are then computed with gradients, once per shared row."""
    trainer = make(overrides=("rl.freeze_projector=false", "rl.max_response_length=12"))
    batch = batch_of(trainer, LENGTHS)
    theirs = passed(GRPOTrainer, trainer, batch)
    check_equal(passed(LogprobPasses, trainer, batch), theirs)
    moved = [
        n for n, p in trainer.plain_model.named_parameters() if family.is_projector(n) and bool(p.grad.abs().sum())
    ]
    assert {name.split(f"{family.vision}.")[1].split(".")[0] for name in moved} == set(family.projectors)


def test_adapters_and_checkpointing_change_nothing(make: Any, family: Backbone, policy: Path) -> None:
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    trainer = make(
        peft_config=adapters.lora_config(lora, family),
        tweak={"gradient_checkpointing": True},
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    layers = trainer.plain_model.config.text_config.num_hidden_layers
    adapted = sum("lora_A" in name for name, _ in trainer.model.named_parameters())
    assert adapted == layers * len(family.lora_projections)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert trained == shape_of(str(policy)).adapters(lora), "as `make plan` counts them"
    batch = batch_of(trainer, LENGTHS)
    theirs = passed(GRPOTrainer, trainer, batch)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    check_equal(passed(LogprobPasses, trainer, batch), theirs)
