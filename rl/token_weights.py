"""Advantages per token: each rollout's advantage times a factor for each of its tokens. TRL's loss takes (B, T) advantages.

`Dependence` is VPPO's (arXiv 2510.09285): tokens that depend on the image carry the gradient, and rollouts that depend on it
more weigh more. With p the policy that sampled, p̃ the same policy on an image with random black patches:

    d_t = clip(log p̃_t − log p_t, ±20)        s_t = clip(e^{d_t} − d_t − 1, 0, 10)      (the k3 estimate of KL(p ‖ p̃))
    m_t = 1[s_t is among the top `keep` of its response]
    w   = lowest + (highest − lowest) · (s̄ − min s̄) / (max s̄ − min s̄)      s̄: mean of s_t over a response; min, max: of the batch
    Â_t = w · m_t · Â                          highest: such that w has mean 1 in the batch

Differs from VPPO: min and max are over the generation batch instead of an update's; `highest` by the rule of mean 1 and the
number of kept tokens rounded up are our readings; no entropy penalty (0.06); the loss stays divided by all tokens of a response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rl import masked_images
from rl.passes import LogprobPasses

LOG_RATIO, LARGEST = 20.0, 10.0  # bounds of d and s


class TokenWeights(Protocol):
    """Factors of the tokens' advantages."""

    def check(self, trainer: LogprobPasses) -> None:
        """Called before the first step. Raises UserError if the factors cannot be computed."""

    def __call__(self, trainer: LogprobPasses, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        """Factors (B, T) of one process' rollouts of a generation batch, and figures for the log (`tokens/<name>`).

        Every process calls it at the same place of a step.

        Args:
            batch: what TRL made of the rollouts, `completion_ids` (B, T) and `old_per_token_logps` among it.
        """
        ...


def weighted(trainer: LogprobPasses, weights: TokenWeights, advantages_B: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The tokens' advantages (B, T) in training; in evaluation, which trains nothing, the rollouts' (B,) as they are.

    Raises:
        ValueError: factors of another shape, or that are not finite.
    """
    model: Any = trainer.model
    if not model.training:
        return advantages_B
    factors_BT, figures = weights(trainer, batch)
    if factors_BT.shape != batch["completion_ids"].shape:
        raise ValueError(
            f"token weights of shape {tuple(factors_BT.shape)}, but {tuple(batch['completion_ids'].shape)} tokens"
        )
    if not bool(torch.isfinite(factors_BT).all()):
        raise ValueError("a token weight is not finite")
    for name, figure in figures.items():
        trainer._metrics["train"][f"tokens/{name}"].append(figure)
    return advantages_B.unsqueeze(1) * factors_BT


def trained_tokens(batch: Mapping[str, Any]) -> Tensor:
    """1 for each token (B, T) of TRL's batch that the policy wrote: no padding, and nothing that a tool wrote."""
    mask_BT: Tensor = batch["completion_mask"]
    return mask_BT if batch.get("tool_mask") is None else mask_BT * batch["tool_mask"]


def dependence(logps_BT: Tensor, changed_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """s_t (B, T): how much each token's probability depends on the image; 0 for padding.

    Args:
        logps_BT: log-probabilities on the image.
        changed_BT: of the same tokens on the changed image.
    """
    d_BT = (changed_BT - logps_BT).clamp(-LOG_RATIO, LOG_RATIO)
    return (d_BT.exp() - d_BT - 1).clamp(0.0, LARGEST) * mask_BT


def top_tokens(s_BT: Tensor, mask_BT: Tensor, keep: float) -> Tensor:
    """m_t (B, T): 1 for the ⌈keep · length⌉ tokens of each response with the largest s; of equal ones, the earlier."""
    ranked_BT = s_BT.masked_fill(~mask_BT.bool(), -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    lengths_B = mask_BT.sum(dim=1, keepdim=True)
    kept_B = torch.ceil(keep * lengths_B.double() - 1e-9)
    return ((ranked_BT < kept_B) & mask_BT.bool()).to(s_BT.dtype)


def rollout_weights(means_N: Tensor, lowest: float) -> Tensor:
    """w (N,) of a batch from its rollouts' mean s: from `lowest` upwards, with mean 1. Ones if all means are equal."""
    span = means_N.max() - means_N.min()
    if not bool(span > 0):
        return torch.ones_like(means_N)
    share_N = (means_N - means_N.min()) / span
    return lowest + (1 - lowest) * share_N / share_N.mean()


@dataclass(frozen=True)
class Dependence:
    """VPPO's factors.

    Attributes:
        keep: share of each response's tokens that carry the gradient, above 0.
        lowest: weight of the rollout that depends on the image least.
        blank: share of the patches that the changed image lacks.

    Raises:
        ValueError: a share out of its bounds.
    """

    keep: float = 0.4
    lowest: float = 0.9
    blank: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.keep <= 1 and 0 <= self.lowest <= 1 and 0 < self.blank <= 1 and math.isfinite(self.keep)):
            raise ValueError(f"keep and blank are shares above 0, lowest one from 0; got {self}")

    def check(self, trainer: LogprobPasses) -> None:
        """Raises UserError where the images cannot be changed."""
        masked_images.check(trainer, "rl.token_weights")

    def __call__(self, trainer: LogprobPasses, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        """See `TokenWeights`. One pass without gradient, and a second one where TRL keeps no old log-probabilities."""
        mask_BT = trained_tokens(batch)
        per_pass = trainer.args.per_device_train_batch_size
        changed = masked_images.blanked(trainer, batch, self.blank)
        with torch.no_grad():
            logps_BT = batch.get("old_per_token_logps")
            if logps_BT is None:
                logps_BT = trainer.logps_of(trainer.model, batch, per_pass)
            changed_BT = trainer.logps_of(trainer.model, changed, per_pass)
        s_BT = dependence(logps_BT, changed_BT, mask_BT)
        means_B = s_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
        means_N = trainer.accelerator.gather(means_B)
        weights_N = rollout_weights(means_N, self.lowest)
        first = trainer.accelerator.process_index * len(means_B)
        own_B = weights_N[first : first + len(means_B)]
        figures = {"dependence": float(means_N.mean()), "highest_weight": float(weights_N.max())}
        return own_B.unsqueeze(1) * top_tokens(s_BT, mask_BT, self.keep), figures
