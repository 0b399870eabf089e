"""A group of rollouts through the trainer's own generation, of which nothing stays behind (for `rl.preflight`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from fgrpo.policy import backbone

if TYPE_CHECKING:
    from rl.trainer import FaithfulGRPOTrainer

_IMAGE_FIELDS = ("pixel_values", "num_images", "token_type_ids", "mm_token_type_ids")  # and `Backbone.grid_field`


class Probe:
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

    def logprobs(self, batch: Mapping[str, Any]) -> Tensor:
        """The trainer's own log-probabilities (B, T) of a batch of `rollout`."""
        fields = (*_IMAGE_FIELDS, backbone.of_model(self.trainer.plain_model).grid_field)
        with torch.no_grad():
            result: Any = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.trainer.args.per_device_train_batch_size,
                **{key: batch[key] for key in fields if key in batch},
            )
        logps_BT: Tensor = result[0]
        return logps_BT

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
