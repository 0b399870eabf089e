"""Rollouts in process: what is sampled is what the trainer thinks it sampled, and kept features are the computed ones."""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

from fgrpo.inference import decode as decoder
from fgrpo.policy import backbone, loading
from fgrpo.training.row_images import image_fields
from rl import length_bucketing
from rl.dry_run import DryRun
from rl.in_process_trainer import FeatureMemo, InProcessTrainer

TOLERANCE = 2e-4  # float32, another order of summation


def test_rollout_and_trainer_logprobs_agree(make, monkeypatch) -> None:
    """The decoder's log-probabilities of what it sampled equal those of the trainer's own pass over the same tokens."""
    rolled: list[list[float]] = []
    inner = decoder.decode

    def noting(model: Any, prompts: Any, rows: Any, vocabulary: Any) -> None:
        inner(model, prompts, rows, vocabulary)
        rolled.extend(row.logprobs for row in rows)

    monkeypatch.setattr("rl.in_process_trainer.decode", noting)
    trainer = make(steps=1)
    batches: list[Any] = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(generate(inputs)) or batches[-1]
    trainer.train()
    batch = batches[0]
    mask = batch["completion_mask"].bool()
    assert [len(row) for row in rolled] == mask.sum(dim=1).tolist()
    assert len({tuple(ids.tolist()) for ids in batch["completion_ids"]}) > 2  # rollouts of a group differ
    for row, (reference, known) in enumerate(zip(batch["ref_per_token_logps"], mask, strict=True)):
        assert torch.allclose(torch.tensor(rolled[row]), reference[known], atol=TOLERANCE)


def test_padding_changes_nothing(make, monkeypatch) -> None:
    """Log-probabilities, entropies and gradients of a batch piece by piece are those of TRL's one padded pass."""
    trainer = make(overrides=("rl.max_response_length=60",), rows="by_length")
    rows = [row for n in (1, 2) for row in trainer.train_dataset if len(row["images"]) == n][:3]
    rows += [row for row in trainer.train_dataset if len(row["images"]) == 2][:2]
    batch, _ = DryRun(trainer).rollout(rows)
    kept, widths = batch["completion_ids"].shape[1], []
    fields = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    given = {key: batch[key] for key in fields}
    mask_BL = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    ids_BL = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    policy = trainer.plain_model
    policy.register_forward_pre_hook(lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True)

    def passed(kind: type[Any]) -> list[torch.Tensor]:
        logps, entropies, _ = kind._get_per_token_logps_and_entropies(
            trainer, policy, ids_BL, mask_BL, kept, compute_entropy=True, **given
        )
        policy.zero_grad()
        (logps * torch.linspace(-1, 1, kept) + 0.1 * entropies).mul(batch["completion_mask"]).sum().backward()
        known = batch["completion_mask"].bool()
        return [logps[known], entropies[known], *(p.grad for p in policy.parameters() if p.grad is not None)]

    plain = passed(GRPOTrainer)
    monkeypatch.setattr(length_bucketing, "ROWS", 3)
    cut = passed(InProcessTrainer)
    assert widths[0] == ids_BL.shape and len(widths) == 1 + -(-len(ids_BL) // 3)
    assert sum(a * b for a, b in widths[1:]) < 0.9 * ids_BL.numel()  # less was computed
    assert len(plain) == len(cut) > 30
    for one, other in zip(plain, cut, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.detach().abs().max()))


def test_the_images_of_some_rows_by_the_familys_name_of_their_grids() -> None:
    """Rows with 1, 2 and 0 images of 2, 1 and 3 patches."""
    fields = {"pixel_values": torch.arange(6), "grids": torch.tensor([[1, 1, 2], [1, 1, 1], [1, 3, 1]])}
    chosen = image_fields(fields, [1, 2], [1, 2, 0], "grids")
    assert chosen["num_images"] == [2, 0] and "image_grid_thw" not in chosen
    assert torch.equal(torch.as_tensor(chosen["pixel_values"]), torch.tensor([2, 3, 4, 5]))
    assert torch.equal(torch.as_tensor(chosen["grids"]), fields["grids"][1:])


def test_special_tokens_are_never_sampled(make) -> None:
    trainer = make(steps=1, overrides=("rl.temperature=50.0",))  # nearly uniform over what may be sampled
    batches: list[Any] = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(generate(inputs)) or batches[-1]
    trainer.train()
    forbidden = set(loading.forbidden_token_ids(trainer._tokenizer))
    ids, mask = batches[0]["completion_ids"], batches[0]["completion_mask"].bool()
    assert not forbidden & set(ids[mask].tolist())


def test_kept_features_equal_computed_ones(policy) -> None:
    model, _ = loading.load_policy(policy)
    loading.freeze_vision(model, projector=True)
    tower = model.model.visual
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64 + 16, 1176, generator=generator)
    grids = torch.tensor([[1, 8, 8], [1, 4, 4]])
    plain = tower(pixels, grid_thw=grids).pooler_output
    memo = FeatureMemo()
    memo.install(tower, backbone.of_model(model))
    calls: list[int] = []
    tower.patch_embed.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    five = [0, 1, 0, 0, 1]
    repeated = torch.cat([pixels[:64] if i == 0 else pixels[64:] for i in five])
    got = tower(repeated, grid_thw=grids[five]).pooler_output
    parts = torch.split(plain, [16, 4])
    assert torch.allclose(got, torch.cat([parts[i] for i in five]), atol=1e-5)
    tower(repeated, grid_thw=grids[five])
    assert calls == [80]  # each picture once, in one pass; nothing the second time
    memo.clear()
    tower(pixels, grid_thw=grids)
    assert calls == [80, 80]


def test_a_trained_projector_is_trained_and_its_features_are_not_kept(make) -> None:
    trainer = make(steps=1, overrides=("rl.freeze_projector=false",))
    tower = trainer.plain_model.model.visual
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    trainer.train()
    assert trainer._memo is None
    moved = {name for name, p in tower.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(name.startswith("merger.") for name in moved)


def test_a_trained_tower_is_not_memorised(policy) -> None:
    import pytest

    model, _ = loading.load_policy(policy)
    with pytest.raises(ValueError, match="trained"):
        FeatureMemo().install(model.model.visual, backbone.of_model(model))
