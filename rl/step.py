"""One RL step of the method as one pure function: scores in, advantages, multipliers and metrics out (Eqs. 4 to 6).

`fgrpo_step` computes everything that a generation batch changes or leaves behind; the trainer applies the `Step` and the
logging callback writes it. λ_t weighs the batch, the dual step gives λ_{t+1}.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl import advantage
from rl.advantage import Baseline, Coupling, Masked, Whiten
from rl.dual import DualAscent, DualStep
from rl.scored_batch import ScoredBatch, batch_metrics


@dataclass(frozen=True)
class StepOptions:
    """What a step depends on besides scores and multipliers.

    Attributes:
        group_size: rollouts per prompt.
        coupling: None decouples (Eq. 6); else one reward is made of all columns first (Table 2).
        masked, baseline, whiten: options of `rl.advantage.combine`.
        names: the columns' reward names, the task's first; None: the task's and those of the constraints.
        training: evaluation takes no dual step, and its reward is the task's alone.
    """

    group_size: int
    coupling: Coupling | None = None
    masked: Masked = "exclude"
    baseline: Baseline = "group"
    whiten: Whiten = "sequence"
    names: tuple[str, ...] | None = None
    training: bool = True


@dataclass(frozen=True, eq=False)
class Step:
    """What one generation batch came to, over all processes. Everything logged or written about it is a field.

    Attributes:
        scores_NK: scores as they enter Eq. 6 (1 or 0 where a constraint has an `indicator`), column 0 the task's; NaN = no score.
        failed_NK: which of the NaN are failures.
        weights_K: [1, λ_t…]; ones where the columns are coupled.
        advantages_N: what trains the policy.
        dual_steps: one per constraint; none in evaluation.
        dual_state: state of the multipliers after the step (`DualAscent.load_state_dict`).
        metrics: figures for the log, by key; a mean over no score is left out.
        rollouts: the scored rollouts, one batch per process, in the order of the rows.
    """

    scores_NK: Tensor
    failed_NK: Tensor
    weights_K: Tensor
    advantages_N: Tensor
    dual_steps: tuple[DualStep, ...]
    dual_state: Mapping[str, Any]
    metrics: Mapping[str, float]
    rollouts: tuple[ScoredBatch, ...] = field(default=(), repr=False)


def fgrpo_step(
    scores: Tensor,
    failures: Tensor | None,
    dual: DualAscent,
    options: StepOptions,
    *,
    lengths_N: Tensor | None = None,
    rollouts: Sequence[ScoredBatch] = (),
) -> Step:
    """The step of one generation batch. `dual` stays as it is; its state after the step is in the result.

    Args:
        scores: scores_NK over all processes, rows of one group together, column 0 the task's; NaN = no score.
        failures: failed_NK, which of the NaN are failures; None: none is.
        dual: the multipliers λ_t, one constraint per column after the task's; no constraint where columns are coupled.
        lengths_N: completion lengths in tokens, for `whiten="token"`.
        rollouts: the scored rollouts, for metrics and files.

    Raises:
        ValueError: shapes do not fit one another or the options, or a score is infinite.
    """
    names = options.names or ("task", *(constraint.reward for constraint in dual.constraints))
    if options.coupling is not None and dual.constraints:
        raise ValueError(
            f"rewards coupled as {options.coupling!r} take no constraints, but the dual has {len(dual.constraints)}"
        )
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise ValueError(f"scores of shape {tuple(scores.shape)}, but the columns are {list(names)}")
    failed_NK = torch.zeros_like(scores, dtype=torch.bool) if failures is None else failures
    if failed_NK.shape != scores.shape:
        raise ValueError(f"scores of shape {tuple(scores.shape)}, but failures of shape {tuple(failed_NK.shape)}")
    bounds = (None, *(c.indicator for c in dual.constraints)) if dual.constraints else (None,) * len(names)
    raw, scores = scores, advantage.indicators(scores, bounds)
    weights = dual.weights() if options.coupling is None else [1.0] * len(names)
    weights_K = torch.tensor(weights, dtype=torch.float32, device=scores.device)
    advantages_N = _advantages(scores, failed_NK, weights_K, options, lengths_N)
    metrics = _reward(scores, failed_NK, weights_K, options)
    metrics |= _means(scores, names)
    metrics |= _raw_means(raw, names, bounds)
    after, steps = copy.deepcopy(dual), list[DualStep]()
    if options.training:
        steps = after.step(scores[:, 1:] if dual.constraints else scores[:, :0])
        metrics |= _constraint_metrics(scores, failed_NK, weights_K, names, steps, options)
        metrics |= batch_metrics(rollouts)
    state = after.state_dict()
    return Step(scores, failed_NK, weights_K, advantages_N, tuple(steps), state, metrics, tuple(rollouts))


def _advantages(
    scores_NK: Tensor, failed_NK: Tensor, weights_K: Tensor, options: StepOptions, lengths_N: Tensor | None
) -> Tensor:
    """Eq. 6, or the coupled rewards of Table 2; 0 for groups of one, which evaluation may have and which have no baseline."""
    if options.group_size == 1 and not options.training:
        return torch.zeros_like(scores_NK[:, 0])
    columns_NK, failed, weights = scores_NK, failed_NK if failed_NK.any() else None, weights_K
    if options.coupling is not None:
        columns_NK = advantage.couple(scores_NK, options.coupling, failed_NK)
        failed, weights = None, torch.ones_like(weights_K[:1])
    return advantage.combine(
        columns_NK,
        weights,
        options.group_size,
        masked=options.masked,
        baseline=options.baseline,
        whiten=options.whiten,
        lengths_N=lengths_N,
        failed_NK=failed,
    )


def _reward(scores_NK: Tensor, failed_NK: Tensor, weights_K: Tensor, options: StepOptions) -> dict[str, float]:
    """Mean and deviation of the reward: in training task + sum of λ_t times the constraints; the coupled one where there is one.

    In evaluation it is the task reward alone, so that the choice of the best checkpoint does not follow λ.
    """
    if options.coupling is not None:
        reward_N = advantage.couple(scores_NK, options.coupling, failed_NK)[:, 0]
    elif not options.training:
        reward_N = scores_NK[:, 0]
    else:
        reward_N = (scores_NK * weights_K).nansum(dim=1)
        reward_N = torch.where(torch.isnan(scores_NK).all(dim=1), torch.nan, reward_N)
    known_N = reward_N[~torch.isnan(reward_N)]
    out = {"reward": float(known_N.mean())} if len(known_N) else {}
    return out | ({"reward_std": float(known_N.std())} if len(known_N) > 1 else {})


def _means(scores_NK: Tensor, names: Sequence[str]) -> dict[str, float]:
    """`task/mean`, and `constraint/<name>/mean` and `n` (rollouts with a score), in training and in evaluation."""
    out: dict[str, float] = {}
    for k, name in enumerate(names):
        known_N = scores_NK[:, k][~torch.isnan(scores_NK[:, k])]
        prefix = f"constraint/{name}" if k else "task"
        if len(known_N):
            out[f"{prefix}/mean"] = float(known_N.double().mean())
        if k:
            out[f"{prefix}/n"] = float(len(known_N))
    return out


def _raw_means(scores_NK: Tensor, names: Sequence[str], bounds_K: Sequence[float | None]) -> dict[str, float]:
    """`constraint/<name>/score`: the mean score where the constraint's own mean is of an indicator."""
    out = {}
    for k, (name, bound) in enumerate(zip(names, bounds_K, strict=True)):
        known_N = scores_NK[:, k][~torch.isnan(scores_NK[:, k])]
        if bound is not None and len(known_N):
            out[f"constraint/{name}/score"] = float(known_N.double().mean())
    return out


def _constraint_metrics(
    scores_NK: Tensor,
    failed_NK: Tensor,
    weights_K: Tensor,
    names: Sequence[str],
    steps: Sequence[DualStep],
    options: StepOptions,
) -> dict[str, float]:
    """`constraint/<name>/…`, `lambda/<name>` (the λ_t that weighed this batch) and the columns' shares of the advantage."""
    out: dict[str, float | None] = {}
    share_K: Tensor | None = None
    if options.coupling is None:
        share_K = advantage.shares(
            scores_NK, weights_K, options.group_size,
            masked=options.masked, baseline=options.baseline, failed_NK=failed_NK,
        )  # fmt: skip
        out["task/share"] = float(share_K[0])
    by_name = {step.name: step for step in steps}
    for k, name in enumerate(names[1:], start=1):
        mixed, groups = advantage.varying_groups(scores_NK[:, k], options.group_size)
        prefix = f"constraint/{name}"
        out[f"{prefix}/mixed_share"] = mixed / groups
        out[f"{prefix}/failed"] = float(failed_NK[:, k].sum())
        if share_K is not None:
            out[f"{prefix}/share"] = float(share_K[k])
        if (step := by_name.get(name)) is not None:
            out[f"lambda/{name}"] = step.lam_before
            out[f"{prefix}/violation"] = step.violation
            out[f"{prefix}/moved"] = float(step.moved)
            out[f"{prefix}/saturated"] = float(step.saturated)
            out[f"{prefix}/at_bound"] = float(step.at_bound)
            out[f"{prefix}/steps_to_bound"] = None if step.bound_steps is None else float(step.bound_steps)
    return {key: value for key, value in out.items() if value is not None}
