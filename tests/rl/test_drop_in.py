"""Somebody's own TRL script: their model, their data, two reward functions. One class and one argument are exchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from fgrpo.policy import loading
from rl.advantage import combine
from rl.dual import Constraint
from rl.trainer import DUALS, FaithfulGRPOTrainer


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Their task reward; prompts are plain text, so completions are."""
    return [float(gold in text) for gold, text in zip(answer, completions, strict=True)]


def short(completions: list[Any], **_: Any) -> list[float | None]:
    """Their second reward, which does not apply to what is empty."""
    return [None if not text.strip() else 0.5 ** (len(text) // 4) for text in completions]


def their_script(
    trainer_class: type[GRPOTrainer], policy: Path, out: Path, config: dict[str, Any], **more: Any
) -> GRPOTrainer:
    """As TRL's own documentation writes it; text alone, no processor, no pictures."""
    model, _ = loading.load_policy(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    data = Dataset.from_dict({"prompt": ["the red box is", "left or right :"] * 4, "answer": ["left", "right"] * 4})
    args = GRPOConfig(
        output_dir=str(out), per_device_train_batch_size=4, num_generations=4, max_completion_length=8, max_steps=2,
        learning_rate=1e-3, logging_steps=1, save_steps=2, bf16=False, use_cpu=True, report_to="none", seed=1,
        gradient_checkpointing=False, generation_kwargs={"suppress_tokens": loading.forbidden_token_ids(tokenizer)}, **config,
    )  # fmt: skip
    trainer = trainer_class(
        model=model, reward_funcs=[right, short], args=args, train_dataset=data, processing_class=tokenizer, **more
    )
    trainer.train()
    return trainer


def test_one_class_is_exchanged(policy: Path, tmp_path: Path) -> None:
    theirs = their_script(GRPOTrainer, policy, tmp_path / "theirs", {})
    assert theirs.state.global_step == 2
    ours = their_script(
        FaithfulGRPOTrainer, policy, tmp_path / "ours", {}, constraints=[Constraint("short", tau=0.5, min_applicable=1)]
    )
    assert ours.state.global_step == 2 and isinstance(ours, GRPOTrainer)
    assert ours.dual.lam["short"] > 1.0  # it was violated
    assert (tmp_path / "ours" / "checkpoint-2" / DUALS).exists()
    logged = ours.state.log_history[0]
    assert logged["lambda/short"] == 1.0 and logged["constraint/short/n"] == 4


def test_without_constraints_it_is_trls_trainer(policy: Path, tmp_path: Path) -> None:
    """λ fixed at 1 and TRL's weights of 1 are the same thing: the same weights come out, but for round-off of advantages."""
    from rl.dual import DualAscent

    config = {"multi_objective_aggregation": "normalize_then_sum"}
    theirs = their_script(GRPOTrainer, policy, tmp_path / "theirs", config)
    ours = their_script(
        FaithfulGRPOTrainer,
        policy,
        tmp_path / "ours",
        config,
        dual=DualAscent([Constraint("short", 0.5)], "fixed"),
        rows="trl",
    )
    base, _ = loading.load_policy(policy)
    start, one, two = (
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (base, theirs.model, ours.model)
    )
    assert (one - two).norm() < 0.01 * (one - start).norm()


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_trls_aggregation_trains_nothing(policy: Path, tmp_path: Path, aggregation: str) -> None:
    """Advantages are Eq. 6's whatever TRL's option says: with its default, which adds rewards first, as well."""
    trainer = their_script(
        FaithfulGRPOTrainer, policy, tmp_path, {"multi_objective_aggregation": aggregation},
        constraints=[Constraint("short", tau=0.5, min_applicable=1)],
    )  # fmt: skip
    step = trainer.last_step
    assert torch.equal(step.advantages_N, combine(step.scores_NK, step.weights_K, 4))
    assert list(trainer._logs["advantages"])[-4:] == step.advantages_N.tolist()
