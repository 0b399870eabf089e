"""PAPO (arXiv 2507.06448): the policy should find its own words less likely without the image.

    loss = policy loss − γ · KL        KL = mean over rollouts of the mean over tokens of  e^{d_t} − d_t − 1
    d_t = log π(y_t | masked image) − log π(y_t | image)

`rl.auxiliary.papo.weight` is −γ; the masked image lacks random patches (`rl.masked_images`, p = 0.6), one mask per prompt and
step, and its pass has no gradient. γ = 0.02 under GRPO with a reference KL, 0.01 without one.

The direction of the gradient: the estimate has the value of KL(π ‖ π_masked), but the gradient through π alone of this k3 term is
E_π[(1 − π_masked/π) ∇ log π], which is that of KL(π_masked ‖ π).

Differs from PAPO: no entropy terms (0.03 to 0.05; that of the masked view has no gradient there either); tokens are averaged per
rollout first, as in our policy loss; d is bounded by ±20 and the estimate by 10, as in EasyR1, on which PAPO is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl import masked_images
from rl.auxiliary_loss import AuxiliaryLoss, AuxiliaryLosses, Figures
from rl.token_weights import dependence, trained_tokens


def rollout_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over each rollout's tokens, then over rollouts."""
    return ((values_BT * mask_BT).sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)).mean()


@dataclass
class Papo(AuxiliaryLoss):
    """The KL term; `weight` is −γ, so it must be below 0.

    Attributes:
        blank: share of patches that the masked image lacks.

    Raises:
        ValueError: a weight that would bring both views together, or a share out of its bounds.
    """

    weight: float
    blank: float = 0.6
    name: str = "papo"

    def __post_init__(self) -> None:
        if not self.weight < 0:
            raise ValueError(f"weight is −γ and must be below 0 (PAPO raises the KL), got {self.weight}")
        if not 0 < self.blank <= 1:
            raise ValueError(f"blank is a share of patches above 0, got {self.blank}")

    def check(self, trainer: AuxiliaryLosses) -> None:
        """Raises UserError where there is no image to mask."""
        masked_images.check(trainer, "rl.auxiliary.papo")

    def __call__(
        self, trainer: AuxiliaryLosses, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[Tensor | None, Figures]:
        """KL over one micro-batch, with one pass without gradient over the masked images."""
        logps_BT, mask_BT = trainer.policy_logps_BT, trained_tokens(inputs)
        assert logps_BT is not None  # the policy's own pass has been made
        with torch.no_grad():
            masked_BT = trainer.logps_of(model, masked_images.blanked(trainer, inputs, self.blank, "rl.auxiliary.papo"))
        return rollout_mean(dependence(logps_BT, masked_BT, mask_BT), mask_BT), {}


AUXILIARY = Papo
