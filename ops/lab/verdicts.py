"""Verdicts on hypotheses, from their declared directions and margins and the effects alone.

Each part of a hypothesis is tested from both sides of its bound. A hypothesis is supported where every part is (the largest of the
parts' p values), and refuted where one part is (the smallest, times their number). A part whose seeds have no spread has no test: it
neither supports nor refutes. Of both sides the smaller p, doubled, enters Holm's correction over all hypotheses that the lab
declares in that condition; one that cannot be tested counts with p = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ops.lab.declaration import Lab, Part
from ops.lab.statistics import Effect, Estimate, holm

Outcome = Literal["supported", "refuted", "undecided"]
Reasons = Callable[[str, Part], str]  # (condition, part) -> words
Effects = Callable[[str, Part], Effect | None]  # (condition, part) -> effect
Sides = tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one hypothesis in one condition; `missing` says which cells its test waits for."""

    hypothesis: str
    condition: str
    outcome: Outcome
    effects: tuple[Effect | None, ...]
    p: float
    p_holm: float
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        effects = [None if e is None else e.to_dict() for e in self.effects]
        return {**vars(self), "effects": effects}


def bound_of(part: Part) -> float:
    """The number that the effect is claimed to lie above or below."""
    return part.margin if part.direction == "above" else -part.margin


def sides(parts: Sequence[Part], effects: Sequence[Estimate]) -> Sides:
    """(p of the claim's opposite, p of the claim): small in the first speaks for the hypothesis, in the second against it."""
    for_it, against = [], []
    for part, found in zip(parts, effects, strict=True):
        tested = found.one_sided(bound_of(part)) or (1.0, 1.0)
        first, second = tested if part.direction == "above" else tested[::-1]
        for_it.append(first)
        against.append(second)
    return max(for_it), min(1.0, len(parts) * min(against))


def two_sided(tests: Sides) -> float:
    """The p value that enters Holm's correction."""
    return min(1.0, 2.0 * min(tests))


def outcome_of(tests: Sides | None, corrected: float, alpha: float) -> Outcome:
    """The outcome by the corrected p value; the smaller side gives the direction."""
    if tests is None or corrected >= alpha:
        return "undecided"
    return "supported" if tests[0] < tests[1] else "refuted"


def decide(lab: Lab, effect_of: Effects, why: Reasons = lambda condition, part: "") -> list[Verdict]:
    """Every hypothesis in each of its conditions, in order.

    Args:
        why: the reason why a comparison has no effect although its arms have runs; "" if there is none.
    """
    out = []
    for condition in lab.conditions:
        names = [name for name, h in lab.hypotheses.items() if condition in h.conditions]
        effects = {name: tuple(effect_of(condition, part) for part in lab.hypotheses[name].parts) for name in names}
        missing = {
            name: _missing(lab.hypotheses[name].parts, effects[name], lab.stopping.min_seeds, partial(why, condition))
            for name in names
        }
        tests = {
            name: sides(lab.hypotheses[name].parts, [e for e in effects[name] if e is not None])
            for name in names
            if not missing[name]
        }
        p = {name: two_sided(tests[name]) if name in tests else 1.0 for name in names}
        corrected = holm(p)
        for name in names:
            outcome = outcome_of(tests.get(name), corrected[name], lab.analysis.alpha)
            out.append(Verdict(name, condition, outcome, effects[name], p[name], corrected[name], missing[name]))
    order = list(lab.hypotheses)
    return sorted(out, key=lambda v: order.index(v.hypothesis))


def _missing(parts: Sequence[Part], effects: Sequence[Effect | None], least: int, why: Callable[[Part], str]) -> str:
    for part, found in zip(parts, effects, strict=True):
        arms = part.a if part.b is None else f"{part.a} and {part.b}"
        if found is None:
            return why(part) or f"no seed of {arms} has a value of {part.metric}"
        if found.seeds < least:
            return f"{found.seeds} of at least {least} seeds of {arms}"
    return ""
