"""Advantages of one rollout batch from its score columns: Eq. 6 and the coupled baselines of Table 2. Pure; torch only.

Every method trains on what `combine` returns (`rl.step`), and on nothing else.

Shapes: N rollouts in groups of `group_size` neighbours (one prompt each), K score columns of which column 0 is the task
reward. NaN means "no score" (not applicable, or the judge failed), never zero.

Decoupled (Eq. 6): each column is normalised within its group over its own applicable rollouts, weighted by [1, λ…], summed
and whitened over the batch. Coupled (Table 2): `couple` turns the columns into ONE reward column, which then passes through
the same `combine`. So all six rows of Tables 2 and 3 are options of this file.

Where the paper is silent (docs/deviations.md): masked rollouts stay out of group statistics (`masked`), a column that is
constant in a group contributes nothing there (`baseline`), whitening counts sequences (`whiten`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-4  # TRL's
CONSTANT = 1e-6  # a spread below this share of the largest value is round-off, not variance

Masked = Literal["exclude", "zero"]
Baseline = Literal["group", "batch"]
Whiten = Literal["sequence", "token", "none"]
Coupling = Literal["additive", "multiplicative"]


def combine(
    scores_NK: Tensor,
    weights_K: Tensor,
    group_size: int,
    *,
    masked: Masked = "exclude",
    baseline: Baseline = "group",
    whiten: Whiten = "sequence",
    lengths_N: Tensor | None = None,
    failed_NK: Tensor | None = None,
    eps: float = EPS,
    whiten_eps: float | None = None,
) -> Tensor:
    """Advantages adv_N = whiten(sum_k weight_k * normalise(score_k)), Eq. 6.

    A group with fewer than two applicable members, or without variance, contributes 0 for that column. Rows whose scores
    are all NaN get 0 and stay out of the whitening statistics. Standard deviations have ddof 1.

    Args:
        scores_NK: scores; NaN = no score. Rows of one group stand together.
        weights_K: [1, λ…].
        group_size: rollouts per prompt, at least 2.
        masked: "exclude" leaves NaN out of the group's mean and deviation (Eq. 5's reading); "zero" counts it as 0 in them, so
            a masked rollout gets an advantage too.
        baseline: where a column is constant within a group, "group" gives its rollouts 0. "batch" centres and scales its
            applicable rollouts there by those of the batch.
        whiten: "sequence" (each rollout counts once), "token" (each counts `lengths_N` times; verl), or "none".
        lengths_N: completion lengths in tokens, for `whiten="token"` only.
        failed_NK: which NaN are failures rather than "not applicable". Those are unknown, so never 0, whatever `masked` is.
        eps: added to each standard deviation.
        whiten_eps: added to the batch's deviation where a framework uses two (verl); None: `eps`.

    Raises:
        ValueError: shapes do not fit, a score is infinite, group size below 2, an unknown option.
    """
    scores_NK, weights_K = _checked(scores_NK, weights_K, group_size)
    normal_NK, scorable_N = _normalised_columns(scores_NK, group_size, masked, baseline, failed_NK, eps)
    total_N = (normal_NK * weights_K).sum(dim=1)
    adv_N = _whitened(total_N, scorable_N, whiten, lengths_N, eps if whiten_eps is None else whiten_eps)
    return torch.where(scorable_N, adv_N, 0.0)


def couple(scores_NK: Tensor, kind: Coupling, failed_NK: Tensor | None = None) -> Tensor:
    """One reward column of shape (N, 1) from the task's and the constraints' columns, before any normalisation (Table 2).

    "additive": R_task + R_C + …; a score that is not applicable adds nothing. "multiplicative": R_task * R_C * …; a score
    that is not applicable is a factor of 1. So a wrong answer keeps its format reward, and a correct one with an inconsistent
    trace falls to 0. A rollout with a failed score has no reward (NaN): its sum is unknown, not smaller.

    Args:
        scores_NK: column 0 is the task reward.
        failed_NK: which of the NaN are failures rather than "not applicable".

    Raises:
        ValueError: not a table of scores, or an unknown kind.
    """
    if scores_NK.ndim != 2 or scores_NK.shape[1] < 1:
        raise ValueError(f"scores must be (rollouts, columns), got {tuple(scores_NK.shape)}")
    if kind == "additive":
        reward_N = torch.nan_to_num(scores_NK, nan=0.0).sum(dim=1)
    elif kind == "multiplicative":
        reward_N = torch.nan_to_num(scores_NK, nan=1.0).prod(dim=1)
    else:
        raise ValueError(f"coupling is 'additive' or 'multiplicative', got {kind!r}")
    unknown_N = torch.isnan(scores_NK[:, 0])
    if failed_NK is not None:
        unknown_N = unknown_N | failed_NK.any(dim=1)
    return torch.where(unknown_N, torch.nan, reward_N).unsqueeze(1)


def indicators(scores_NK: Tensor, bounds_K: Sequence[float | None]) -> Tensor:
    """1[score >= bound] in the columns that have a bound, and the scores as they are in the others. NaN stays NaN.

    It is the complement of Constrained GRPO's cost 1[score < bound] (arXiv 2602.05863). Its normalised column is minus the
    cost's, so A = Z_R − Σ λ Z_C is the sum of Eq. 6 over it, and E[cost] <= d is E[indicator] >= 1 − d.
    """
    columns = []
    for scores_N, bound in zip(scores_NK.unbind(dim=1), bounds_K, strict=True):
        reached_N = scores_N if bound is None else (scores_N >= bound).to(scores_N)
        columns.append(torch.where(torch.isnan(scores_N), torch.nan, reached_N))
    return torch.stack(columns, dim=1)


def varying_groups(scores_N: Tensor, group_size: int) -> tuple[int, int]:
    """(groups in which this column varies over its applicable rollouts, groups). Only the former give a policy gradient."""
    grouped = scores_N.view(-1, group_size, 1)
    known = ~torch.isnan(grouped)
    _, varies = _normalise(torch.nan_to_num(grouped, nan=0.0), known, EPS)
    return int(varies.sum()), len(grouped)


def shares(
    scores_NK: Tensor,
    weights_K: Tensor,
    group_size: int,
    *,
    masked: Masked = "exclude",
    baseline: Baseline = "group",
    failed_NK: Tensor | None = None,
) -> Tensor:
    """Each column's share of the advantage's variance before whitening, summing to 1 (all 0 where nothing varies).

    Share k = Var(w_k Z_k) / sum_j Var(w_j Z_j): covariances are left out, so shares stay in [0, 1]. With independent columns
    the task's is 1 / (1 + sum λ²). The options are those of `combine`.
    """
    scores_NK, weights_K = _checked(scores_NK, weights_K, group_size)
    normal_NK, _ = _normalised_columns(scores_NK, group_size, masked, baseline, failed_NK, EPS)
    power_K = normal_NK.double().var(dim=0, correction=0) * weights_K.double().square()
    total = power_K.sum()
    return power_K / total if total > 0 else torch.zeros_like(power_K)


def _checked(scores_NK: Tensor, weights_K: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    if scores_NK.ndim != 2:
        raise ValueError(f"scores must be (rollouts, columns), got {tuple(scores_NK.shape)}")
    if not scores_NK.dtype.is_floating_point:
        scores_NK = scores_NK.to(torch.float32)
    if group_size < 2:
        raise ValueError(f"a group of {group_size} has no baseline; use at least 2 rollouts per prompt")
    if scores_NK.shape[0] % group_size:
        raise ValueError(f"{scores_NK.shape[0]} rollouts do not divide into groups of {group_size}")
    if weights_K.shape != scores_NK.shape[1:]:
        raise ValueError(f"{scores_NK.shape[1]} score columns, but weights of shape {tuple(weights_K.shape)}")
    if torch.isinf(scores_NK).any():
        row, column = torch.isinf(scores_NK).nonzero()[0].tolist()
        raise ValueError(f"score column {column} is infinite for rollout {row} of the batch")
    return scores_NK, weights_K.to(scores_NK)


def _normalised_columns(
    scores_NK: Tensor, group_size: int, masked: Masked, baseline: Baseline, failed_NK: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Each column normalised (N, K), 0 where it is unknown or constant; and the rows (N,) of which anything is known."""
    known_NK = ~torch.isnan(scores_NK)
    scorable_N = known_NK.any(dim=1)
    if masked == "zero":  # what failed is not 0, nor are rows about which nothing is known
        known_NK = scorable_N.unsqueeze(1).expand_as(known_NK)
        if failed_NK is not None:
            known_NK = known_NK & ~failed_NK
    elif masked != "exclude":
        raise ValueError(f"masked is 'exclude' or 'zero', got {masked!r}")
    values_NK = torch.where(torch.isnan(scores_NK), 0.0, scores_NK)
    n, k = scores_NK.shape
    grouped, known = values_NK.view(-1, group_size, k), known_NK.reshape(-1, group_size, k)
    normal_BGK, varies_B1K = _normalise(grouped, known, eps)
    if baseline == "batch":
        across_BGK, _ = _normalise(values_NK.view(1, n, k), known_NK.reshape(1, n, k), eps)
        normal_BGK = torch.where(varies_B1K, normal_BGK, across_BGK.view_as(normal_BGK))
    elif baseline != "group":
        raise ValueError(f"baseline is 'group' or 'batch', got {baseline!r}")
    return normal_BGK.reshape(n, k), scorable_N


def _normalise(values: Tensor, known: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(value - mean) / (std + eps) over dimension 1 of (B, G, K), 0 where unknown or constant; and which (B, 1, K) vary."""
    count = known.sum(dim=1, keepdim=True)
    mean = (values * known).sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = (values - mean) * known
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    highest = values.masked_fill(~known, -torch.inf).amax(dim=1, keepdim=True)
    lowest = values.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
    scale = torch.maximum(highest.abs(), lowest.abs())
    varies = (count >= 2) & (highest - lowest > CONSTANT * scale)
    return torch.where(varies, deviation / (std + eps), 0.0), varies


def _whitened(total_N: Tensor, scorable_N: Tensor, whiten: Whiten, lengths_N: Tensor | None, eps: float) -> Tensor:
    """Centre and scale over the batch's scorable rows, each counted once or once per token."""
    if whiten == "none":
        return total_N
    if whiten == "token":
        if lengths_N is None or lengths_N.shape != total_N.shape:
            raise ValueError("whiten='token' needs lengths_N, one completion length per rollout")
        count_N = lengths_N.to(total_N) * scorable_N
    elif whiten == "sequence":
        count_N = scorable_N.to(total_N)
    else:
        raise ValueError(f"whiten is 'sequence', 'token' or 'none', got {whiten!r}")
    count = count_N.sum()
    mean = (total_N * count_N).sum() / count.clamp(min=1)
    variance = ((total_N - mean).square() * count_N).sum() / (count - 1).clamp(min=1)
    return (total_N - mean) / (variance.sqrt() + eps)
