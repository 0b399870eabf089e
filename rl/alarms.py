"""Messages about constraints that have done nothing, or could not be met, for `Alarms.EVERY` dual steps (generations) in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rl.dual import Constraint, DualAscent


class Alarms:
    """A multiplier at its bound or standing still, a constraint that applies nowhere or varies in no group, a score that
    paraphrases dilute.

    Args:
        constraints: those of the run.
        moving: whether their multipliers move (not those of kind "fixed").
    """

    EVERY = 50
    DILUTION = 0.05  # mean over sentences minus mean over distinct claims

    def __init__(self, constraints: Sequence[Constraint], moving: bool = True) -> None:
        self.constraints, self.moving = tuple(constraints), moving
        self._in_a_row: dict[str, Counter[str]] = {c.reward: Counter() for c in constraints}
        self._moved: Counter[str] = Counter()
        self._steps = 0

    @classmethod
    def of_dual(cls, dual: DualAscent) -> Alarms:
        """The alarms for these multipliers."""
        return cls(dual.constraints, dual.kind != "fixed")

    def of(self, line: Mapping[str, Any]) -> list[str]:
        """The alarms that a generation raises.

        Args:
            line: its `Step.metrics`, or its first line of metrics.jsonl.
        """
        self._steps += 1
        return [message for constraint in self.constraints for message in self._of_one(constraint, line)]

    def at_end(self) -> list[str]:
        """The alarms of a run that ended before a multiplier moved."""
        if not self.moving or not 0 < self._steps < self.EVERY:
            return []
        still = [c.reward for c in self.constraints if not self._moved[c.reward]]
        return [f"λ of {name} never moved in this run ({_steps(self._steps)}): {self._cause(name)}" for name in still]

    def _cause(self, name: str) -> str:
        """Why a multiplier stood still during the entire run."""
        nowhere = self._in_a_row[name]["nowhere"] == self._steps
        return "the constraint applied to no rollout (every score was None, or failed)" if nowhere else _STANDS_STILL

    def _of_one(self, constraint: Constraint, line: Mapping[str, Any]) -> list[str]:
        name, counts = constraint.reward, self._in_a_row[constraint.reward]
        prefix, messages = f"constraint/{name}", list[str]()
        at_bound = int(line.get(f"{prefix}/at_bound") or 0)
        if at_bound and at_bound % self.EVERY == 0:
            messages.append(
                f"{name} has been at its bound λ = {constraint.lam_max:g} for {at_bound} steps and is still violated: "
                f"τ = {constraint.tau:g} looks infeasible"
            )
        self._moved[name] += bool(line.get(f"{prefix}/moved"))
        nowhere = line.get(f"{prefix}/n") == 0
        still = self._again(counts, "still", self.moving and line.get(f"{prefix}/moved") == 0)
        if self._again(counts, "nowhere", nowhere):
            messages.append(
                f"{name} applied to no rollout for {counts['nowhere']} steps (every score was None, or failed): the constraint "
                "does nothing"
            )
        elif still and not nowhere:
            messages.append(f"λ of {name} has not moved for {counts['still']} steps: {_STANDS_STILL}")
        if self._again(counts, "constant", not line.get(f"{prefix}/mixed_share") and not nowhere):
            messages.append(
                f"{name} has varied in no group for {counts['constant']} steps: it moves λ, but gives no policy gradient "
                "(with baseline=batch it does)"
            )
        dilution = line.get(f"monitor/{name}/dilution")
        if dilution is not None and self._again(
            counts, "diluted", dilution > self.DILUTION
        ):  # None: nothing was scored
            messages.append(
                f"{name} counts sentences and has been {dilution:.2f} above the mean over distinct claims for "
                f"{counts['diluted']} steps: paraphrases dilute what is false (rl.grounding_mean=claims counts each once)"
            )
        return messages

    def _again(self, counts: Counter[str], what: str, present: bool) -> bool:
        """Count it, or start again from 0; returns whether the count has reached a multiple of `EVERY`."""
        counts[what] = counts[what] + 1 if present else 0
        return counts[what] > 0 and counts[what] % self.EVERY == 0


_STANDS_STILL = "fewer rollouts than min_applicable had a score; lower it, or enlarge the generation batch"


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
