"""Effects with intervals over seeds and questions, and tests with a correction for several hypotheses. Pure functions of numpy.

The seeds of a lab answer the same questions, so seeds and questions are crossed: each draw of the bootstrap resamples the questions
of every benchmark once, for all seeds and both arms, and the seeds once, for both arms. With few seeds a plain bootstrap is
too narrow: the seeds' deviations are scaled by sqrt(S / (S - 1)), and intervals and tests use Student's t with S - 1 degrees of
freedom around the bootstrap's standard error. Arrays are named by their axes: B draws, S seeds, G groups of questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """Values of one method in one condition.

    Attributes:
        seeds: S seeds, in order.
        strata: by benchmark {group: (sums_S, counts_S)} over the answers of a group that have a value.
    """

    seeds: tuple[int, ...]
    strata: Mapping[str, Mapping[str, tuple[Floats, Floats]]]

    def only(self, seeds: Sequence[int]) -> Arm:
        """The arm with these seeds only."""
        at = [self.seeds.index(seed) for seed in seeds]
        strata = {name: {g: (s[at], c[at]) for g, (s, c) in groups.items()} for name, groups in self.strata.items()}
        return Arm(tuple(seeds), strata)


def arm_of_rows(rows: Sequence[tuple[int, str, str, float | None]], pooled: bool = False) -> Arm:
    """An arm from (seed, benchmark, group, value) of every answer; None is left out.

    Args:
        pooled: one stratum instead of one per benchmark (`rewards.base.Report.pooled`).
    """
    seeds = tuple(sorted({row[0] for row in rows}))
    place = {seed: i for i, seed in enumerate(seeds)}
    strata: dict[str, dict[str, tuple[Floats, Floats]]] = {}
    for seed, benchmark, group, value in rows:
        if value is None:
            continue
        groups = strata.setdefault("all" if pooled else benchmark, {})
        if group not in groups:
            groups[group] = (np.zeros(len(seeds)), np.zeros(len(seeds)))
        groups[group][0][place[seed]] += value
        groups[group][1][place[seed]] += 1.0
    return Arm(seeds, strata)


def arm_of_cells(values: Mapping[int, float]) -> Arm:
    """An arm of one value per seed."""
    return arm_of_rows([(seed, "cell", "cell", value) for seed, value in values.items()])


@dataclass(frozen=True)
class Effect:
    """A difference, or a mean, over seeds: by seed, its standard error, and the interval (None below two seeds)."""

    value: float
    by_seed: Mapping[int, float]
    error: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)

    def one_sided(self, bound: float) -> tuple[float, float] | None:
        """p values of the tests that the effect is not above, and not below, `bound`; None below two seeds."""
        from scipy.stats import t

        if self.error is None:
            return None
        if self.error == 0.0:
            return float(self.value <= bound), float(self.value >= bound)
        above = float(t.sf((self.value - bound) / self.error, self.seeds - 1))
        return above, 1.0 - above

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        by_seed = {str(seed): value for seed, value in self.by_seed.items()}
        return {"value": self.value, "low": self.low, "high": self.high, "error": self.error, "by_seed": by_seed}


def effect(
    a: Arm, b: Arm | None = None, *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Effect | None:
    """`a` minus `b`, paired by seed and question, or the mean of `a`; None if no seed has a value in both.

    Each seed counts equally, and in it each benchmark.
    """
    from scipy.stats import t

    seeds = [s for s in a.seeds if b is None or s in b.seeds]
    arms = [arm.only(seeds) for arm in ((a,) if b is None else (a, b))]
    names = [name for name in a.strata if b is None or name in b.strata]
    if not seeds or not names:
        return None
    groups = {name: sorted({g for arm in arms for g in arm.strata[name]}) for name in names}
    signs = (1.0,) if b is None else (1.0, -1.0)
    whole = {name: np.ones((1, len(groups[name]))) for name in names}
    observed_S = sum(sign * _means(arm, groups, whole)[0] for sign, arm in zip(signs, arms, strict=True))
    kept = [i for i, value in enumerate(np.atleast_1d(observed_S)) if np.isfinite(value)]
    if not kept:
        return None
    by_seed = {seeds[i]: float(np.atleast_1d(observed_S)[i]) for i in kept}
    value, count = float(np.mean(list(by_seed.values()))), len(kept)
    if count < 2:
        return Effect(value, by_seed)
    rng = np.random.default_rng(seed)
    drawn = {name: _multinomial(rng, len(groups[name]), samples) for name in names}
    effects_BS = sum(sign * _means(arm, groups, drawn)[:, kept] for sign, arm in zip(signs, arms, strict=True))
    weights_BS = _multinomial(rng, count, samples) / count
    centre_B = np.nanmean(effects_BS, axis=1)
    deviations_B = np.nansum((weights_BS - 1.0 / count) * (effects_BS - centre_B[:, None]), axis=1)
    draws_B = centre_B + np.sqrt(count / (count - 1)) * deviations_B
    error = float(np.nanstd(draws_B, ddof=1))
    reach = float(t.ppf(0.5 + confidence / 2, count - 1)) * error
    return Effect(value, by_seed, error, value - reach, value + reach)


def _multinomial(rng: np.random.Generator, count: int, samples: int) -> Floats:
    """(samples, count): how often each of `count` units is drawn."""
    return rng.multinomial(count, np.full(count, 1.0 / count), size=samples).astype(np.float64)


def _means(arm: Arm, groups: Mapping[str, Sequence[str]], weights: Mapping[str, Floats]) -> Floats:
    """(B, S) means over the benchmarks of the weighted means over their groups; NaN where no benchmark has a value."""
    empty = (np.zeros(len(arm.seeds)), np.zeros(len(arm.seeds)))
    means = []
    for name, members in groups.items():
        pairs = [arm.strata[name].get(group, empty) for group in members]
        sums_GS, counts_GS = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        with np.errstate(invalid="ignore"):
            means.append((weights[name] @ sums_GS) / (weights[name] @ counts_GS))
    stacked = np.stack(means)
    known = np.isfinite(stacked).sum(axis=0)
    with np.errstate(invalid="ignore"):
        out: Floats = np.where(known > 0, np.nansum(stacked, axis=0) / known, np.nan)
    return out


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p values (Holm 1979), by name."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(values, key=lambda key: values[key])):
        worst = max(worst, min(1.0, (len(values) - rank) * values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in values}
