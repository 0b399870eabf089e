"""The seam of the probes in the trainer: they run between the log-prob passes and the reward functions, while judges work.

TRL's order is: generate, old log-probs (not always), reference log-probs (unless beta is 0), reward functions. The first pass
without gradients shows the batch as the passes see it. If TRL makes no such pass, the batch is built here as TRL would build it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewards.base import RewardContext
from rl.passes import LogprobPasses
from rl.probes import base
from rl.probes.base import Batch, Rollouts
from rl.probes.passes import Passes


@dataclass
class _Seen:
    """The no-grad passes of one generation batch: arguments of the first, results of all, in TRL's order."""

    first: dict[str, Any] | None = None
    logps: list[Tensor] = field(default_factory=list)


class ProbedRollouts(LogprobPasses):
    """LogprobPasses that measures what the scorer's rewards need. Without such rewards it changes nothing."""

    scorer: Any
    seconds: dict[str, float]
    _seen: _Seen | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What the rewards of the scorer need measured."""
        return frozenset(getattr(self.scorer, "needs", ()))

    def check_probes(self) -> None:
        """Check that the model and the options allow what the rewards need. Raises UserError."""
        if self.needs:
            context: RewardContext = self.scorer.context
            for probe, _ in base.chosen(self.needs):
                probe.check(self, context)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._seen = _Seen() if self.needs else None
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        *args: Any,
        **fields: Any,
    ) -> Any:
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size, *args, **fields
        )
        if self._seen is not None and not torch.is_grad_enabled():
            if self._seen.first is None:
                self._seen.first = {
                    "ids_BL": input_ids, "mask_BL": attention_mask, "completion": logits_to_keep,
                    "most": batch_size or len(input_ids),
                    "fields": {key: value for key, value in fields.items() if value is not None},
                }  # fmt: skip
            self._seen.logps.append(result[0])
        return result

    def measure_probes(self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]]) -> None:
        """Measure the batch and hand the numbers to the scorer; nothing where no reward asks.

        Args:
            prompts: as TRL hands them to the reward functions.
            completion_ids: token ids of the completions.
        """
        if self._seen is None:
            return
        began = time.perf_counter()
        seen, self._seen = self._seen, None  # so that the passes of probes are not taken for TRL's
        try:
            rollouts: Rollouts = self.scorer.rollouts
            # With beta, the last pass is the reference's; TRL makes an old one before it, or alone, only where it needs it.
            has_reference = self.beta != 0.0 and bool(seen.logps)
            old = seen.logps[: len(seen.logps) - has_reference]
            batch = Batch(
                rollouts,
                **(seen.first or self.batch_of(prompts, completion_ids)),
                original_BT=old[0] if old else None,
                reference_BT=seen.logps[-1] if has_reference else None,
            )
            found = base.measure(self.needs, batch, Passes(self, batch), self._tokenizer)
        except BaseException:
            self.scorer.measured(None)
            raise
        self.scorer.measured(found)
        self.seconds["probes"] = self.seconds.get("probes", 0.0) + time.perf_counter() - began

    def batch_of(self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The arguments of a log-prob pass, where TRL makes none."""
        device, family = self.accelerator.device, self.known_family()
        assert family is not None  # or a probe's `check` has refused
        prompt_ids, images, given = self._tokenize_prompts(list(prompts))
        prompts_BP, prompt_mask_BP = _padded(prompt_ids, left=True)
        answers_BT, answer_mask_BT = _padded(completion_ids)
        ids_BL = torch.cat([prompts_BP, answers_BT], dim=1).to(device)
        mask_BL = torch.cat([prompt_mask_BP, answer_mask_BT], dim=1).to(device)
        fields: dict[str, Any] = {}
        if images is not None:
            is_image_BL = (ids_BL == family.image_token_id(self.plain_model.config)) & (mask_BL == 1)
            fields = {
                "pixel_values": torch.as_tensor(given["pixel_values"]).to(device),
                family.grid_field: torch.as_tensor(given[family.grid_field]).to(device),
                "num_images": [len(row or ()) for row in images],
                "mm_token_type_ids": is_image_BL.long(),
            }
        model: Any = self.model
        in_training = bool(model.training)
        most = self.args.per_device_train_batch_size if in_training else self.args.per_device_eval_batch_size
        return {
            "ids_BL": ids_BL, "mask_BL": mask_BL, "completion": answers_BT.shape[1], "most": most, "fields": fields,
        }  # fmt: skip


def _padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, columns), padded with 0 on the right or left."""
    side = "left" if left else "right"
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
    return ids, mask
