"""Which reward functions are the task's and which are constraints: TRL's reward columns as the columns of Eq. 6.

A reward function that no constraint names belongs to the task. If there are several, their sum by TRL's `reward_weights` is the
one task reward. So the order of the reward functions is free, and an environment's own reward (`get_reward`) is the task's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name, get_config_model_id

from rewards.base import TASK


def names_of(functions: Sequence[Any], given: Sequence[str] | None) -> list[str]:
    """The name of each reward function: the given one, else TRL's (a function's own name, or the end of a model's id).

    Raises:
        ValueError: not one given name per function.
    """
    if given is None:
        return [_name(function) for function in functions]
    if isinstance(given, str) or len(given) != len(functions):
        raise ValueError(
            f"reward_names must name each of the {len(functions)} reward functions, in their order; got {given!r}"
        )
    return list(given)


def _name(function: Any) -> str:
    if isinstance(function, str):
        return function.split("/")[-1]
    if isinstance(function, nn.Module):
        config: Any = function.config
        return get_config_model_id(config).split("/")[-1]
    return get_callable_name(function)


@dataclass(frozen=True)
class Columns:
    """The order of Eq. 6's columns in that of TRL's.

    Attributes:
        task: indices of the task's reward functions.
        constraints: the index of each constraint's reward function, in the order of the constraints.
        names: of the columns of Eq. 6, the task's first.
    """

    task: tuple[int, ...]
    constraints: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, rewards: Sequence[str], constrained: Sequence[str]) -> Self:
        """Args: names of the reward functions and of the constraints, which `rl.checks.check_names` has accepted."""
        task = tuple(k for k, name in enumerate(rewards) if name not in constrained)
        indices = tuple(list(rewards).index(name) for name in constrained)
        return cls(task, indices, (rewards[task[0]] if len(task) == 1 else TASK, *constrained))

    def reduce(self, scores_NR: Tensor, failed_NR: Tensor, weights_R: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and failures (N, 1 + constraints) of all reward functions' (N, R).

        As in TRL, a task reward that does not apply adds nothing. If one of them failed, the task reward is unknown, so it failed too.

        Args:
            weights_R: TRL's reward weights; only those of the task's functions count.
        """
        task, others = list(self.task), list(self.constraints)
        scores_NT, failed_N = scores_NR[:, task], failed_NR[:, task].any(dim=1)
        task_N = (scores_NT * weights_R[task].to(scores_NR)).nansum(dim=1)
        task_N = torch.where(scores_NT.isnan().all(dim=1) | failed_N, torch.nan, task_N)
        scores_NK = torch.cat([task_N.unsqueeze(1), scores_NR[:, others]], dim=1)
        return scores_NK, torch.cat([failed_N.unsqueeze(1), failed_NR[:, others]], dim=1)

    def weights(self, weights_R: Tensor, multipliers: Sequence[float]) -> Tensor:
        """TRL's reward weights (R,) with each constraint's multiplier in its place."""
        changed_R = weights_R.clone()
        changed_R[list(self.constraints)] = torch.tensor(multipliers, dtype=weights_R.dtype)
        return changed_R
