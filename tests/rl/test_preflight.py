"""Each check of the preflight, made to fail; and that it leaves nothing behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import backbone, loading
from rl import preflight, train
from rl.dual import Constraint
from rl.probes.attention import Attention
from rl.scoring import RolloutScorer
from rl.trainer import FaithfulGRPOTrainer
from tests.rl.conftest import by_other_weights, mini
from tests.stand_in_engine import Engine

PIXELS = PixelBounds(784, 12544, 28)


def forbidden(trainer: Any) -> list[int]:
    return loading.forbidden_token_ids(trainer._tokenizer)


def rows(trainer: Any) -> list[dict[str, Any]]:
    return preflight.preflight_rows(trainer.train_dataset)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ({"xyxy": [4, 4, 40, 40]}, "does not name its frame"),
        ({"xyxy": [4, 4, 40, 40], "frame": "percent"}, "does not name its frame"),
        ({"xyxy": [4, 4, 40], "frame": "model"}, "does not have four numbers"),
        ({"xyxy": [4, 4, 40, "wide"], "frame": "model"}, "does not have four numbers"),
        ({"frame": "model"}, "does not have four numbers"),
        ({"xyxy": [40, 4, 4, 40], "frame": "model"}, "has no extent"),
        ({"xyxy": [4, 4, 40, 140], "frame": "model"}, "does not fit an image of 112 x 112"),
        ({"xyxy": [-9, 4, 40, 40], "frame": "original"}, "does not fit"),
        ({"xyxy": [4, 4, 40, 1040], "frame": "thousand"}, "does not fit an image of 1000 x 1000"),
        ({"xyxy": [4, 4, 40, 40], "frame": "unit"}, "does not fit an image of 1 x 1"),
    ],
)
def test_boxes(world: Path, tmp_path: Path, box: dict[str, Any], words: str) -> None:
    good = list(read_jsonl(world / "rl.jsonl"))
    preflight.check_boxes(world / "rl.jsonl", PIXELS, ("vgr",))
    bad = tmp_path / "rl.jsonl"
    write_jsonl(bad, [good[0], {**good[1], "boxes": [box]}])
    with pytest.raises(UserError, match=rf"boxes of 1 samples are wrong.*vgr/train/1: .*{words}"):
        preflight.check_boxes(bad, PIXELS, ("vgr",))
    preflight.check_boxes(bad, PIXELS, ("treevgr",))  # nobody is rewarded by these


def test_prompts_fit_and_their_tokens_are_features(make, monkeypatch) -> None:
    trainer = make(steps=1)
    given = rows(trainer)
    assert max(len(row["images"]) for row in given) == 2
    preflight.check_prompts(trainer, given, 256, PIXELS)
    with pytest.raises(UserError, match=r"prompt of vgr/train/\d+ has \d+ tokens, and rl.max_prompt_length is 20"):
        preflight.check_prompts(trainer, given, 20, PIXELS)
    with pytest.raises(UserError, match=r"were estimated from the processor's bounds"):
        preflight.check_prompts(trainer, given, 256, PixelBounds(784, 784, 28))
    trainer.max_completion_length = 10**6
    with pytest.raises(UserError, match="more than the model's context"):
        preflight.check_prompts(trainer, given, 256, PIXELS)
    trainer.max_completion_length = 10
    monkeypatch.setattr(trainer.processing_class.image_processor, "merge_size", 1)
    with pytest.raises(UserError, match=r"has \d+ image tokens, and its images give \d+ features"):
        preflight.check_prompts(trainer, given, 256, PIXELS)


def test_image_tokens_cannot_be_sampled(make) -> None:
    for kind in ({}, {"kind": FaithfulGRPOTrainer}):
        trainer = make(steps=1, **kind)
        preflight.check_sampling(trainer, forbidden(trainer))
    trainer.generation_config.suppress_tokens = None
    with pytest.raises(UserError, match=r"may sample <\|.*suppress_tokens"):
        preflight.check_sampling(trainer, forbidden(trainer))
    trainer.use_vllm = True
    banned = dict.fromkeys(forbidden(trainer), -100.0)
    trainer.args.generation_kwargs = {"logit_bias": banned}
    preflight.check_sampling(trainer, forbidden(trainer))
    trainer.args.generation_kwargs = {"logit_bias": {**banned, trainer.plain_model.config.image_token_id: -1.0}}
    with pytest.raises(UserError, match=r"may sample <\|image_pad\|> and 0 more.*logit_bias"):
        preflight.check_sampling(trainer, forbidden(trainer))


def test_engine_and_trainer_agree_and_leaves_nothing_behind(make) -> None:
    trainer = make(steps=1)
    before, state = torch.random.get_rng_state(), copy.deepcopy(trainer.dual.state_dict())
    difference = preflight.check_engine(trainer, rows(trainer)[:1], forbidden(trainer), 1e-3)
    assert difference is not None and difference < 2e-5
    assert torch.equal(before, torch.random.get_rng_state()) and trainer.dual.state_dict() == state
    assert not trainer._metrics["train"] and not trainer._metrics["eval"] and not trainer._logs["prompt"]
    assert "_calculate_rewards" not in vars(trainer)
    plain = make(steps=1, kind=FaithfulGRPOTrainer)
    assert preflight.check_engine(plain, rows(plain)[:1], forbidden(plain), 1e-3) is None  # transformers tells none


def test_the_largest_rows_pass_forward_and_backward_and_leave_nothing_behind(make) -> None:
    trainer = make(steps=1)
    before, state = torch.random.get_rng_state(), copy.deepcopy(trainer.dual.state_dict())
    weights, training = [p.detach().clone() for p in trainer.model.parameters()], trainer.model.training
    largest = preflight.largest_rows(trainer.train_dataset, PIXELS, 2)
    assert [len(row["images"]) for row in largest] == [2, 1]
    backwards: list[int] = []
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    handle = parameter.register_hook(lambda grad: backwards.append(1))
    line = preflight.check_peak(trainer, largest, 17)
    handle.remove()
    prompts = [preflight.prepare_multimodal_messages(row["prompt"], row["images"]) for row in largest]
    longest = max(map(len, trainer._tokenize_prompts(prompts)[0]))
    assert line.startswith(f"largest rows: up to {longest + 17} tokens, forward and backward in ") and backwards
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(map(torch.equal, weights, trainer.model.parameters()))
    assert torch.equal(before, torch.random.get_rng_state()) and trainer.dual.state_dict() == state
    assert "_generate_single_turn" not in vars(trainer) and not trainer._metrics["eval"]
    assert trainer.model.training == training


def test_a_pass_that_does_not_fit_names_the_keys(make, monkeypatch) -> None:
    trainer = make(steps=1)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", full)
    with pytest.raises(UserError, match=r"responses of 9 tokens does not fit .*90 GiB.*rl\.micro_batch"):
        preflight.check_peak(trainer, rows(trainer)[:1], 9)
    assert all(p.grad is None for p in trainer.model.parameters()) and "_generate_single_turn" not in vars(trainer)


def test_the_pass_that_reads_attention_is_tried_where_a_reward_needs_it(make, world, monkeypatch) -> None:
    """Padded rows under the tap may need more memory than the update, whose rollouts share rows."""
    cfg = mini(world)
    context = train.make_scorer(cfg, backbone.default().pixels._replace(min_pixels=784, max_pixels=12544)).context
    seen: list[torch.Tensor] = []
    own = Attention._shares

    def noted(self: Any, *args: Any) -> torch.Tensor:
        seen.append(own(self, *args))
        return seen[-1]

    monkeypatch.setattr(Attention, "_shares", noted)
    for monitored, passes in (("vision_dependence", 0), ("attention_where_it_matters", 1)):
        scorer = RolloutScorer(["consistency"], context, [monitored])
        trainer = make(scorer.reward_funcs(), [Constraint("consistency", 0.7)], scorer=scorer, steps=1, out=monitored)
        state, training = torch.random.get_rng_state(), trainer.model.training
        preflight.check_peak(trainer, rows(trainer)[:2], 9)
        assert len(seen) == passes and torch.equal(state, torch.random.get_rng_state())
        assert trainer.model.training == training and not trainer.take_seconds().get("probes")
    (shares_BT,) = seen
    assert shares_BT.shape == (8, 9) and torch.allclose(shares_BT, torch.ones(8, 9)), "all cells count as evidence"

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")

    monkeypatch.setattr(Attention, "_shares", full)
    with pytest.raises(UserError, match=r"does not fit .*90 GiB.*rl\.micro_batch.*reads attention has padded rows"):
        preflight.check_peak(trainer, rows(trainer)[:1], 9)


def test_deepspeed_s_engine_takes_both_passes_and_keeps_no_gradient(make, monkeypatch) -> None:
    """tests/distributed has the real engine."""
    trainer = make(steps=1)
    batch = preflight.DryRun(trainer).longest(rows(trainer)[:1], 9)
    assert batch["completion_ids"].shape[1] == 9 and bool(batch["completion_mask"].all())
    engine = Engine(trainer.model)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trainer, "model_wrapped", engine)
    monkeypatch.setattr(preflight.DryRun, "longest", lambda *_: batch)
    assert ", forward and backward in " in preflight.check_peak(trainer, rows(trainer)[:1], 9)
    assert engine.said[-3:] == ["boundary False", "backward 0.0", "zero_grad"]
    assert all(p.grad is None for p in trainer.model.parameters())


def test_an_engine_with_other_weights_is_found_out(make, monkeypatch) -> None:
    trainer = make(steps=1)
    monkeypatch.setattr(trainer, "_generate_single_turn", by_other_weights(trainer))
    with pytest.raises(
        UserError, match=r"engine and the trainer differ by .* per token .*sampled tokens \(allowed: 0.001\)"
    ):
        preflight.check_engine(trainer, rows(trainer)[:1], forbidden(trainer), 1e-3)


def test_a_sampled_image_token_is_named(make, monkeypatch) -> None:
    trainer = make(steps=1, kind=FaithfulGRPOTrainer)
    config = trainer.plain_model.config
    monkeypatch.setattr(
        trainer, "_generate_single_turn", lambda ids, *_: ([[5, config.vision_end_token_id]] * len(ids), None)
    )
    with pytest.raises(UserError, match=r"sampled <\|vision_end\|>"):
        preflight.check_engine(trainer, rows(trainer)[:1], forbidden(trainer), 1e-3)
    monkeypatch.setattr(
        trainer, "_generate_single_turn", lambda ids, *_: ([[5, config.image_token_id]] * len(ids), None)
    )
    with pytest.raises(ValueError, match="rollout 000000/0/0000 contains an image token"):
        preflight.check_engine(trainer, rows(trainer)[:1], forbidden(trainer), 1e-3)


def test_it_runs_before_the_first_step(make, world: Path) -> None:
    """Hung into a trainer, it stops the run before anything is sampled for training, and does not change what is trained."""
    cfg = mini(world, "rl.max_prompt_length=30")
    trainer = make(steps=1)
    check = preflight.Preflight(world / "rl.jsonl", PIXELS, forbidden(trainer), cfg)
    trainer.add_callback(check)
    check.trainer = trainer
    with pytest.raises(UserError, match=r"rl\.max_prompt_length is 30"):
        trainer.train()
    assert trainer.state.global_step == 0
    with_it = make(steps=1, out="with")
    check = preflight.Preflight(world / "rl.jsonl", PIXELS, forbidden(trainer), mini(world))
    with_it.add_callback(check)
    check.trainer = with_it
    with_it.train()
    without = make(steps=1, out="without")
    without.train()
    assert check.difference is not None and check.difference < 1e-4
    for one, two in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, two)
