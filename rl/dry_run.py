"""Rollouts and passes of the trainer itself, of which nothing stays behind (for `rl.preflight`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from fgrpo.training import peak

if TYPE_CHECKING:
    from rl.trainer import FaithfulGRPOTrainer


class DryRun:
    """Samples from a trainer's rollout engine without training.

    No reward is computed, no multiplier moves, nothing is logged, and torch's random state is as before.
    """

    def __init__(self, trainer: FaithfulGRPOTrainer) -> None:
        self.trainer = trainer

    def rollout(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Tensor | None]:
        """One group of rollouts for each of `rows`. Every process calls it with as many rows.

        Returns:
            TRL's batch, and the engine's log-probabilities (B, T), NaN where it has none; None if it reports none.
        """
        group = int(self.trainer.num_generations_eval or self.trainer.num_generations or 1)
        inputs = [dict(row) for row in rows for _ in range(group)]
        with self._unscored():
            batch = GRPOTrainer._generate_and_score_completions(self.trainer, inputs)
        return batch, self.trainer.engine_logprobs(batch)

    def longest(self, rows: Sequence[Mapping[str, Any]], response: int) -> dict[str, Any]:
        """TRL's batch for one group of each of `rows`, each response of `response` tokens that no engine samples."""
        group = int(self.trainer.num_generations_eval or self.trainer.num_generations or 1)
        inputs = [dict(row) for row in rows for _ in range(group)]
        with self._unscored(), self._written(response):
            return GRPOTrainer._generate_and_score_completions(self.trainer, inputs)

    def update(self, batch: Mapping[str, Any]) -> None:
        """A forward and a backward pass over a batch, whose gradients are dropped: the memory and time of an update, without one.

        The passes of auxiliary losses are among them. Under DeepSpeed all go through its engine, as in training.
        """
        model: Any = self.trainer.model
        engine: Any = self.trainer.model_wrapped if self.trainer.is_deepspeed_enabled else None
        training = model.training
        device = self.trainer.accelerator.device
        model.train()
        try:
            with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                passed = self.trainer.plain_model if engine is None else engine
                with self.trainer.own_pass(passed, batch):
                    total = self._passes(passed, batch).mean()
                for loss, value, _ in self.trainer.auxiliary_values(passed, batch):
                    total = total if value is None else total + loss.weight * value
                peak.backward(total, engine)
        finally:
            model.train(training)
            self.trainer.plain_model.zero_grad(set_to_none=True)

    def attention(self, batch: Mapping[str, Any]) -> None:
        """The attention probe's pass over a batch, where a reward needs it: padded rows under the tap, and no number is kept."""
        from rl.probes.attention import PROBE

        if "attention" in self.trainer.needs:
            PROBE.try_out(self.trainer, batch, self.trainer.scorer.context)

    @contextmanager
    def _written(self, response: int) -> Iterator[None]:
        """Within it, every response is `response` copies of the last token of its prompt; the rollout engine is not asked."""
        trainer: Any = self.trainer
        use_vllm, own = trainer.use_vllm, vars(trainer).get("_generate_single_turn")
        trainer._generate_single_turn = lambda ids, *_, **__: ([[row[-1]] * response for row in ids], None)
        trainer.use_vllm = False
        try:
            yield
        finally:
            trainer.use_vllm = use_vllm
            del trainer._generate_single_turn
            if own is not None:  # somebody else's replacement
                trainer._generate_single_turn = own

    def logprobs(self, batch: Mapping[str, Any]) -> Tensor:
        """The trainer's own log-probabilities (B, T) of a batch of `rollout`."""
        with torch.no_grad():
            return self._passes(self.trainer.model, batch)

    def _passes(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Log-probabilities (B, T) of a batch under `model`."""
        return self.trainer.logps_of(model, batch, self.trainer.args.per_device_train_batch_size)

    @contextmanager
    def _unscored(self) -> Iterator[None]:
        """In evaluation mode, with a constant reward and no scorer; everything is put back, and the log cleared."""
        trainer, model = self.trainer, self.trainer.model
        assert model is not None
        scorer, functions, training = trainer.scorer, trainer.reward_funcs, model.training
        device = trainer.accelerator.device
        trainer.scorer, trainer.reward_funcs = None, [_constant] * len(functions)
        model.eval()
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            trainer.scorer, trainer.reward_funcs = scorer, functions
            model.train(training)
            trainer._metrics["eval"].clear()
            shown: Any = trainer._logs
            for column in (shown["prompt"], shown["completion"], shown["advantages"], *shown["rewards"].values()):
                column.clear()
            trainer.take_seconds()


def _constant(prompts: Sequence[Any], **_: Any) -> list[float | None]:
    """A reward that says nothing."""
    return [0.0] * len(prompts)
