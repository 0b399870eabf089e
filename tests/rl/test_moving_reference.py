"""A reference policy that follows the trained one: its formula, its place in checkpoints, and where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from fgrpo.errors import UserError
from fgrpo.training.stored import write_checksums
from rl.moving_reference import FILE
from tests.rl.conftest import mini

MOVING = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.25, "ref_model_sync_steps": 2, "learning_rate": 1e-3}
NORM = "model.language_model.norm.weight"


class Steps(TrainerCallback):
    """Keeps a parameter of the policy and of the reference after each update, before TRL's own callback; the first ones are those of the beginning."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.policy: list[torch.Tensor] = []
        self.reference: list[torch.Tensor] = []

    def keep(self, *_: Any, **__: Any) -> None:
        for model, out in ((self.trainer.model, self.policy), (self.trainer.ref_model, self.reference)):
            out.append(dict(model.named_parameters())[NORM].detach().clone())

    on_train_begin = on_step_end = keep


def test_it_is_the_average_of_its_formula(make: Callable[..., Any]) -> None:
    seen = Steps()
    trainer = make(steps=4, tweak=MOVING, callbacks=[seen])
    seen.trainer = trainer
    trainer.train()
    seen.keep()
    policy, reference = seen.policy, seen.reference
    assert not torch.equal(policy[0], policy[2]) and torch.equal(policy[0], reference[0])
    second = 0.75 * policy[0] + 0.25 * policy[2]
    fourth = 0.75 * second + 0.25 * policy[4]
    assert torch.equal(reference[1], reference[0]), "it moves every second update"
    assert torch.allclose(reference[3], second, atol=1e-7) and not torch.allclose(second, policy[0], atol=1e-6)
    assert torch.allclose(reference[-1], fourth, atol=1e-7)


def test_the_configuration_reaches_trl_and_what_cannot_move_is_refused(world: Path, tmp_path: Path) -> None:
    from rl.arguments import grpo_config

    moving = "rl.reference={decay: 0.995, every: 10}"
    args = grpo_config(mini(world, moving), tmp_path, 4)
    assert args.sync_ref_model and args.ref_model_sync_steps == 10
    assert args.ref_model_mixup_alpha == pytest.approx(0.005)
    assert not grpo_config(mini(world), tmp_path, 4).sync_ref_model
    for more, reason in [
        ("rl.kl_coef=0", "rl.kl_coef=0 has no reference policy"),
        ("rl.lora={rank: 4, alpha: 8, dropout: 0.0}", "with rl.lora the reference is the policy without its adapters"),
        ("rl.deepspeed=configs/deepspeed/zero3.json", "rl.deepspeed keeps the reference in shards or in bf16"),
        ("rl.reference.decay=1.0", "rl.reference.decay"),
        ("rl.reference.every=0", "rl.reference.every"),
    ]:
        with pytest.raises(UserError, match=reason):
            mini(world, moving, more)


def test_a_checkpoint_without_it_is_said(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(steps=2, tweak={**MOVING, "save_steps": 2}).train()
    folder = tmp_path / "out" / "checkpoint-2"
    assert (folder / FILE).is_file()
    (folder / FILE).unlink()
    write_checksums(folder)
    with caplog.at_level(logging.WARNING, logger="fgrpo"):
        make(steps=4, tweak={**MOVING, "max_steps": 3}).train(resume_from_checkpoint=str(folder))
    assert f"has no {FILE}: the moving reference begins again with the initial policy" in caplog.text
    make(steps=2, out="fixed", tweak={"save_steps": 2}).train()
    assert not (tmp_path / "fixed" / "checkpoint-2" / FILE).exists(), "a fixed reference is the initial policy"
