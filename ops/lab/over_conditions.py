"""One test per hypothesis over all of its conditions, beside the declared tests. Not declared: it decides no verdict.

The conditions are fixed and count equally; seeds are nested in them, so their parts of the errors are independent, and one t with
Satterthwaite's degrees of freedom replaces them. All conditions answer the same questions, so the questions' part is taken as fully
shared: more conditions do not reduce it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ops.lab.declaration import Lab
from ops.lab.statistics import Effect, Estimate, Noise, estimate, holm
from ops.lab.verdicts import Outcome, Verdict, outcome_of, sides, two_sided


@dataclass(frozen=True)
class Combined:
    """A hypothesis over `conditions`; no estimates and p = 1 where `untested` says why."""

    hypothesis: str
    conditions: tuple[str, ...]
    outcome: Outcome
    estimates: tuple[Estimate, ...]
    p: float
    p_holm: float
    untested: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def satterthwaite(parts: Sequence[Noise]) -> Noise:
    """The sum of variances, with the degrees of freedom of the one t that replaces them (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    return total, total * total / sum(variance * variance / df for variance, df in parts)


def mean_of_conditions(effects: Sequence[Effect], confidence: float) -> Estimate | None:
    """The mean of one comparison's effects in several conditions; None if one of them has no error."""
    noises = [found.noise for found in effects if found.noise is not None]
    if len(noises) < len(effects):
        return None
    count = len(effects)
    seeds = satterthwaite([(variance / count**2, df) for (variance, df), _ in noises])
    shared = sum(float(np.sqrt(variance)) for _, (variance, _) in noises) / count
    groups = min(df for _, (_, df) in noises)
    return estimate(float(np.mean([found.value for found in effects])), seeds, (shared**2, groups), confidence)


def combine(lab: Lab, verdicts: Sequence[Verdict]) -> list[Combined]:
    """Every hypothesis with several declared conditions, over those in which all its parts have enough seeds; Holm's correction is
    over these hypotheses.
    """
    found: dict[str, tuple[tuple[str, ...], tuple[Estimate, ...], str]] = {}
    for name, hypothesis in lab.hypotheses.items():
        if len(hypothesis.conditions) > 1:
            ready = [v for v in verdicts if v.hypothesis == name and not v.missing]
            found[name] = (tuple(v.condition for v in ready), *_estimates(ready, lab.analysis.confidence))
    tests = {
        name: sides(lab.hypotheses[name].parts, estimates) for name, (_, estimates, _) in found.items() if estimates
    }
    p = {name: two_sided(tests[name]) if name in tests else 1.0 for name in found}
    corrected: Mapping[str, float] = holm(p)
    return [
        Combined(
            name,
            conditions,
            outcome_of(tests.get(name), corrected[name], lab.analysis.alpha),
            estimates,
            p[name],
            corrected[name],
            untested,
        )
        for name, (conditions, estimates, untested) in found.items()
    ]


def _estimates(ready: Sequence[Verdict], confidence: float) -> tuple[tuple[Estimate, ...], str]:
    """Per part the mean over conditions; none, and why, if there is no test."""
    if len(ready) < 2:
        return (), f"{len(ready)} of at least 2 conditions have enough seeds"
    found = []
    for effects in zip(*(verdict.effects for verdict in ready), strict=True):
        mean = mean_of_conditions([e for e in effects if e is not None], confidence)
        if mean is None:
            bad = [v.condition for v, e in zip(ready, effects, strict=True) if e is None or e.noise is None]
            return (), f"no test of a part in {', '.join(bad)}"
        found.append(mean)
    return tuple(found), ""
