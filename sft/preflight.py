"""Checks of SFT before its first step: a pass over the longest rows and one over the largest images fit into memory.

The optimizer's states come on top where they are not placed yet. Random state, gradients and TRL's counters are as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fgrpo.training import distributed, peak
from sft.dataset import Row

if TYPE_CHECKING:
    from sft.train import Trainer


class Preflight(TrainerCallback):
    """Runs the checks when training begins, also on resume.

    Args:
        rows: the training rows, in the order of the trainer's data.

    Attributes:
        trainer: set after it is built.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.trainer: Trainer | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer is None or state.global_step >= state.max_steps:
            return
        count = args.per_device_train_batch_size
        longest = peak.largest([row.tokens for row in self.rows], count)
        images = peak.largest([(row.image_tokens, row.tokens) for row in self.rows], count)
        distributed.print_once(check_peak(self.trainer, longest, "longest rows"))
        if set(images) != set(longest):
            distributed.print_once(check_peak(self.trainer, images, "largest images"))


def check_peak(trainer: Trainer, rows: Sequence[int], what: str) -> str:
    """Time and memory of one micro-batch, forward and backward; under DeepSpeed through its engine.

    Args:
        rows: indices into the training data.

    Returns:
        One line (`fgrpo.training.peak.measured`).

    Raises:
        UserError: it does not fit into the memory of the device.
    """
    engine: Any = trainer.model_wrapped if trainer.is_deepspeed_enabled else None
    plain: Any = trainer.model if engine is not None else trainer.accelerator.unwrap_model(trainer.model)

    def run() -> int:
        data: Any = trainer.train_dataset
        batch = trainer._prepare_inputs(trainer.data_collator([data[i] for i in rows]))
        tokens = int(batch["attention_mask"].sum(dim=1).max())
        with _unrecorded(trainer, plain), torch.enable_grad():
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(plain if engine is None else engine, batch)
            peak.backward(loss, engine)
        return tokens

    return peak.measured(
        trainer.accelerator.device,
        run,
        what,
        "forward and backward",
        f"a micro-batch of the {what}",
        "lower sft.batch_size (and raise sft.gradient_accumulation), sft.max_length or policy.pixels.max, or shard over more GPUs",
    )


@contextmanager
def _unrecorded(trainer: Trainer, model: Any) -> Iterator[None]:
    """In training mode; gradients, random state and TRL's counters are put back."""
    device, training = trainer.accelerator.device, model.training
    metrics = {mode: {name: list(values) for name, values in kept.items()} for mode, kept in trainer._metrics.items()}
    tokens = trainer._total_train_tokens
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        trainer._total_train_tokens = tokens
        for mode, kept in trainer._metrics.items():
            kept.clear()
            kept.update(metrics.get(mode, {}))
