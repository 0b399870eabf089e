"""Dual ascent on the constraints' multipliers: Eqs. 4 and 5, Table 6. Independent of any trainer.

Per generation batch: `weights()` gives [1, λ…] for the batch at hand, then `step(scores_NC)` moves λ by that batch's
scores, so the primal step uses λ_t and the dual step gives λ_{t+1} (the paper does not say which; docs/deviations.md).

    (5) mean_k = sum_i m_ki R_ki / sum_i m_ki     over the whole batch; skipped below `min_applicable` applicable rollouts
    (4) λ_k <- clip(λ_k - lr (mean_k - τ_k), 0, λ_max)

Kinds: "adaptive" (the paper), "fixed" (Table 3: never steps), "pid" (own_names, after Stooke et al. 2020, in velocity form:
λ moves by lr e_t + kp (e_t - e_{t-1}) + kd (e_t - 2 e_{t-1} + e_{t-2}) with e = τ - mean, and is then clipped. Since the
integral is λ itself, the bound also bounds the integral, and there is no wind-up. kp = kd = 0 is exactly "adaptive").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["adaptive", "fixed", "pid"]


@dataclass(frozen=True)
class Constraint:
    """E[reward] >= tau (Eq. 2). The defaults are Table 6's, except for `min_applicable` in small batches.

    Attributes:
        reward: the reward's name.
        tau: threshold, in the reward's own unit.
        lam_init, lam_max: first value and upper bound of the multiplier.
        lr: dual learning rate.
        min_applicable: below this many applicable rollouts in a generation batch the multiplier does not move; None: Table
            6's 8, in batches of fewer than 64 rollouts an eighth of the batch, at least 2.
        indicator: None, or a bound that makes the constraint E[1[reward >= indicator]] >= tau. The column of Eq. 6 is then
            that 1[…]: the complement of an indicator cost (`rl.advantage.indicators`).

    Raises:
        ValueError: a value that is not finite or out of bounds.
    """

    reward: str
    tau: float
    lam_init: float = 1.0
    lr: float = 0.05
    lam_max: float = 5.0
    min_applicable: int | None = None
    indicator: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and math.isfinite(self.lr) and math.isfinite(self.lam_max)):
            raise ValueError(f"constraint {self.reward!r}: tau, lr and lam_max must be finite")
        if self.lr <= 0:
            raise ValueError(f"constraint {self.reward!r}: the dual learning rate must be above 0, got {self.lr}")
        if not 0.0 <= self.lam_init <= self.lam_max:
            raise ValueError(
                f"constraint {self.reward!r}: lam_init {self.lam_init} is outside [0, lam_max = {self.lam_max}]"
            )
        if self.indicator is not None and not (math.isfinite(self.indicator) and 0.0 <= self.tau <= 1.0):
            raise ValueError(
                f"constraint {self.reward!r}: indicator must be finite, and tau is then a share of rollouts in [0, 1], got "
                f"indicator={self.indicator}, tau={self.tau}"
            )
        if self.min_applicable is not None and self.min_applicable < 0:
            raise ValueError(f"constraint {self.reward!r}: min_applicable is a count, got {self.min_applicable}")

    def needed(self, batch: int) -> int:
        """How many applicable rollouts of a generation batch of `batch` move the multiplier."""
        return enough(batch) if self.min_applicable is None else self.min_applicable


def enough(batch: int) -> int:
    """`min_applicable` where it is not set: Table 6's 8, and in a smaller batch an eighth of it, at least 2."""
    return max(2, min(8, batch // 8))


@dataclass(frozen=True)
class DualStep:
    """One constraint's dual step.

    Attributes:
        name: the constraint's reward.
        mean: over the applicable rollouts; None without one.
        applicable: number of rollouts with a score.
        violation: τ - mean; positive: violated.
        lam_before, lam: λ before and after the step.
        moved: whether the step updated λ.
        saturated: whether λ is at λ_max while the constraint is violated.
        bound_steps: how many steps at this violation lead to λ's bound (λ_max if violated, 0 if satisfied); None if it is there
            already or does not move.
        at_bound: for how many steps in a row λ has been at λ_max while violated.
    """

    name: str
    mean: float | None
    applicable: int
    violation: float | None
    lam_before: float
    lam: float
    moved: bool
    saturated: bool
    bound_steps: int | None
    at_bound: int


@dataclass
class _State:
    lam: float
    error: float | None = None  # e_{t-1}, pid only
    error_before: float | None = None  # e_{t-2}
    at_bound: int = 0


class DualAscent:
    """The multipliers of several constraints. All state is in `state_dict`, which belongs in every checkpoint."""

    def __init__(
        self, constraints: Iterable[Constraint], kind: Kind = "adaptive", *, kp: float = 0.0, kd: float = 0.0
    ) -> None:
        """`kp` and `kd` are the gains of kind "pid"; its integral gain is each constraint's `lr`.

        Raises:
            ValueError: a constraint named twice, an unknown kind, a negative gain.
        """
        self.constraints = tuple(constraints)
        names = [c.reward for c in self.constraints]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"constraint {twice[0]!r} appears twice")
        if kind not in ("adaptive", "fixed", "pid"):
            raise ValueError(f"the dual kind is 'adaptive', 'fixed' or 'pid', got {kind!r}")
        if kp < 0 or kd < 0:
            raise ValueError(f"PID gains must not be negative, got kp={kp}, kd={kd}")
        self.kind, self.kp, self.kd = kind, kp, kd
        self._states = {c.reward: _State(c.lam_init) for c in self.constraints}

    @property
    def lam(self) -> dict[str, float]:
        """Current multipliers by reward name."""
        return {name: state.lam for name, state in self._states.items()}

    def weights(self) -> list[float]:
        """[1, λ…] in the order of the constraints: the weights of the task's and the constraints' columns."""
        return [1.0, *(self._states[c.reward].lam for c in self.constraints)]

    def step(self, scores_NC: Tensor | Sequence[Sequence[float]]) -> list[DualStep]:
        """Move the multipliers by one global batch of constraint scores (NaN = not applicable or failed: left out).

        Every process must pass the same gathered scores; then all hold the same multipliers.

        Raises:
            ValueError: not one column per constraint, or an infinite score.
        """
        scores = torch.as_tensor(scores_NC, dtype=torch.float64).cpu()
        if scores.ndim != 2 or scores.shape[1] != len(self.constraints):
            raise ValueError(
                f"expected one score column for each of {len(self.constraints)} constraints, got shape {tuple(scores.shape)}"
            )
        if torch.isinf(scores).any():
            row, column = torch.isinf(scores).nonzero()[0].tolist()
            raise ValueError(
                f"the score of {self.constraints[column].reward!r} is infinite for rollout {row} of the batch"
            )
        return [self._step_one(c, scores[:, i]) for i, c in enumerate(self.constraints)]

    def _step_one(self, constraint: Constraint, scores_N: Tensor) -> DualStep:
        state = self._states[constraint.reward]
        known = scores_N[~torch.isnan(scores_N)]
        mean = float(known.mean()) if len(known) else None
        error = None if mean is None else constraint.tau - mean
        before = state.lam
        moved = self.kind != "fixed" and error is not None and len(known) >= constraint.needed(len(scores_N))
        if moved and error is not None:
            change = constraint.lr * error
            if self.kind == "pid":
                last = error if state.error is None else state.error
                before_last = last if state.error_before is None else state.error_before
                change += self.kp * (error - last) + self.kd * (error - 2 * last + before_last)
                state.error_before, state.error = last, error
            state.lam = min(max(state.lam + change, 0.0), constraint.lam_max)
        violated = error is not None and error > 0
        saturated = self.kind != "fixed" and violated and state.lam >= constraint.lam_max
        if moved:
            state.at_bound = state.at_bound + 1 if saturated else 0
        steps = _steps_to_bound(state.lam, error, constraint) if moved and error is not None else None
        return DualStep(
            constraint.reward, mean, len(known), error, before, state.lam, moved, saturated, steps, state.at_bound
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the constraints (to detect another set) and the state of each."""
        return {
            "kind": self.kind,
            "kp": self.kp,
            "kd": self.kd,
            "constraints": [asdict(c) for c in self.constraints],
            "states": {name: asdict(state) for name, state in self._states.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load a saved state, by the constraints' names in any order; nothing changes if it does not fit.

        Raises:
            ValueError: it belongs to another set of constraints (names both), or is malformed or out of bounds.
        """
        try:
            saved_names = [str(c["reward"]) for c in saved["constraints"]]
            loaded = {str(name): _State(**state) for name, state in saved["states"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved dual state: {error!r}") from error
        own_names = [c.reward for c in self.constraints]
        if not sorted(saved_names) == sorted(loaded) == sorted(own_names):
            raise ValueError(f"the saved multipliers belong to the constraints {saved_names}, this run has {own_names}")
        for c in self.constraints:
            lam = loaded[c.reward].lam
            if not (isinstance(lam, (int, float)) and 0.0 <= lam <= c.lam_max):
                raise ValueError(f"the saved multiplier of {c.reward!r} is {lam!r}, outside [0, {c.lam_max}]")
        self._states = loaded


def _steps_to_bound(lam: float, error: float, constraint: Constraint) -> int | None:
    room = constraint.lam_max - lam if error > 0 else lam
    pace = constraint.lr * abs(error)
    return math.ceil(room / pace) if room > 0 and pace > 0 else None
