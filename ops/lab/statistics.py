"""Effects with intervals over seeds and questions, and tests with a correction for several hypotheses. Pure functions of numpy.

The seeds of a lab answer the same questions, so seeds and questions are crossed. Write the effect of seed s on question q as
mu + a_s + c_q + d_sq, with variances va, vc, vd. The mean over S seeds and Q questions has the variance

    va/S + vc/Q + vd/(S Q)  =  v/S + vc/Q,   v = va + vd/Q, the variance of the seeds' own effects.

v is observed. vc/Q is what the seeds share: each draw of the bootstrap resamples the groups of questions of every benchmark once,
for all seeds and both arms, and the mean covariance of two seeds over the draws estimates it.

Tests and intervals are Behrens and Fisher's (Fisher 1935): the error is the sum of two independent parts, Student's t with S - 1
degrees of freedom for the seeds and with G - 1 for G groups of questions. Satterthwaite's single t is not used for this: with three
seeds whose spread happens to be small it trusts the questions' degrees of freedom, and at the levels that Holm's correction asks for
it raises up to eight times too many false alarms (tests/ops/test_lab_statistics.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ops.lab.arms import Arm, Floats, means
from ops.lab.first_published import first_published_error

SAME = 1e-12  # numbers this close are equal
Noise = tuple[float, float]  # a variance, and its degrees of freedom
_GRID = np.linspace(-12.0, 12.0, 1201)
NO_SPREAD = "all seeds have the same effect"
WITHIN_ONE_ANSWER = "the standard deviation of the seeds is less than one answer"
TOO_FEW = "in most draws of questions a seed has no answer with a value"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error, degrees of freedom and interval; None where it has no test."""

    value: float
    error: float | None = None
    noise: tuple[Noise, Noise] | None = None  # of the seeds, and of the questions
    low: float | None = None
    high: float | None = None

    def one_sided(self, bound: float) -> tuple[float, float] | None:
        """p values of the tests that the value is not above, and not below, `bound`; None without an error."""
        if self.noise is None:
            return None
        return tail(self.value - bound, *self.noise), tail(bound - self.value, *self.noise)


@dataclass(frozen=True, kw_only=True)
class Effect(Estimate):
    """A difference, or a mean, over seeds.

    Attributes:
        by_seed: the effect of each seed.
        levels: per arm the seeds' own values.
        untestable: why two or more seeds have no test; "" if they have one.
        gaps: values that are missing, in words.
        further: the further runs that it rests on (`ops.lab.repetitions`).
        first_error: the error as first published (`ops.lab.first_published`).
    """

    by_seed: Mapping[int, float]
    levels: tuple[Mapping[int, float], ...] = ()
    untestable: str = ""
    gaps: tuple[str, ...] = field(default=(), repr=False)
    further: tuple[str, ...] = ()
    first_error: float | None = None

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def tail(distance: float, seeds: Noise, questions: Noise) -> float:
    """The probability that the sum of two scaled Student's t exceeds `distance`."""
    from scipy.stats import t

    (of_seeds, df_seeds), (of_questions, df_questions) = seeds, questions
    if of_questions <= SAME * of_seeds:
        return float(t.sf(distance / np.sqrt(of_seeds), df_seeds))
    weights = t.pdf(_GRID, df_questions)
    beyond = t.sf((distance - np.sqrt(of_questions) * _GRID) / np.sqrt(of_seeds), df_seeds)
    return float((weights * beyond).sum() / weights.sum())


def estimate(value: float, seeds: Noise, questions: Noise, confidence: float) -> Estimate:
    """A value with its interval: the distances that each tail exceeds with (1 - confidence) / 2."""
    from scipy.optimize import brentq

    error = float(np.sqrt(seeds[0] + questions[0]))
    far = 1.0
    while tail(far * error, seeds, questions) > (1 - confidence) / 2:
        far *= 2.0
    reach = error * brentq(lambda x: tail(x * error, seeds, questions) - (1 - confidence) / 2, 0.0, far, xtol=1e-5)
    return Estimate(value=value, error=error, noise=(seeds, questions), low=value - reach, high=value + reach)


def shared_variance(effects_BS: Floats) -> float:
    """The variance that seeds share over draws of questions: the mean covariance of two seeds, at least 0."""
    count = effects_BS.shape[1]
    covariance = np.cov(effects_BS.T)
    return max(0.0, float((covariance.sum() - np.trace(covariance)) / (count * (count - 1))))


def effect(
    a: Arm, b: Arm | None = None, *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Effect | None:
    """`a` minus `b`, paired by seed and question, or the mean of `a`; None if no seed has a value in both.

    Each seed counts equally, and in it each benchmark. A benchmark that one arm lacks is left out of both; `Effect.gaps` says so.
    """
    seeds = [s for s in a.seeds if b is None or s in b.seeds]
    arms = [arm.only(seeds) for arm in ((a,) if b is None else (a, b))]
    names = [name for name in a.strata if b is None or name in b.strata]
    if not seeds or not names:
        return None
    groups = {name: sorted({g for arm in arms for g in arm.strata[name]}) for name in names}
    whole = {name: np.ones((1, len(groups[name]))) for name in names}
    levels = [means(arm, groups, whole)[0] for arm in arms]
    observed_S = levels[0] if b is None else levels[0] - levels[1]
    kept = [i for i, value in enumerate(observed_S) if np.isfinite(value)]
    if not kept:
        return None
    count, total = len(kept), sum(map(len, groups.values()))
    observed_S = observed_S[kept]
    by_arm = tuple({seeds[i]: float(level[i]) for i in kept} for level in levels)
    by_seed = {seeds[i]: float(value) for i, value in zip(kept, observed_S, strict=True)}
    found = Effect(value=float(np.mean(observed_S)), by_seed=by_seed, levels=by_arm, gaps=tuple(_gaps(arms)))
    if count < 2:
        return found
    of_groups, weights_BS = _draws(seed, tuple(len(groups[name]) for name in names), count, samples)
    drawn = dict(zip(names, of_groups, strict=True))
    drawn_BS = [means(arm, groups, drawn)[:, kept] for arm in arms]
    effects_BS = drawn_BS[0] if b is None else drawn_BS[0] - drawn_BS[1]
    first = first_published_error(effects_BS, weights_BS)
    effects_BS = effects_BS[np.isfinite(effects_BS).all(axis=1)]
    untestable = TOO_FEW if 2 * len(effects_BS) < samples else _flat(observed_S, arms, kept)
    if untestable:
        return _with(found, untestable=untestable, first_error=first)
    seeds_part = (float(np.var(observed_S, ddof=1)) / count, count - 1.0)
    questions_part = (shared_variance(effects_BS), max(1.0, total - 1.0))
    return _with(found, **vars(estimate(found.value, seeds_part, questions_part, confidence)), first_error=first)


def _with(found: Effect, **more: Any) -> Effect:
    return Effect(**{**vars(found), **more})


def _flat(observed_S: Floats, arms: Sequence[Arm], kept: Sequence[int]) -> str:
    """Why the spread of the seeds cannot be estimated from them; "" if it can."""
    if np.ptp(observed_S) <= SAME:
        return NO_SPREAD
    fewest = min(float(arm.answers()[kept].min()) for arm in arms)
    if all(arm.is_counted() for arm in arms) and np.std(observed_S, ddof=1) < 1.0 / fewest:
        return WITHIN_ONE_ANSWER
    return ""


def _gaps(arms: Sequence[Arm]) -> list[str]:
    """What the arms lack of each other, in words."""
    found = []
    for arm, other in zip(arms, arms[::-1], strict=True):
        missing = [name for name in other.strata if name not in arm.strata]
        found += [
            f"{arm.name} has no value in {name}, which {other.name} has; it counts in neither" for name in missing
        ]
        found += arm.gaps()
    return found


@lru_cache(maxsize=8)
def _draws(seed: int, sizes: tuple[int, ...], count: int, samples: int) -> tuple[tuple[Floats, ...], Floats]:
    """How often each draw takes each of `sizes` groups, (B, G) per benchmark, and the weight of each of `count` seeds, (B, S)."""
    rng = np.random.default_rng(seed)

    def multinomial(of: int) -> Floats:
        return rng.multinomial(of, np.full(of, 1.0 / of), size=samples).astype(np.float64)

    return tuple(multinomial(size) for size in sizes), multinomial(count) / count


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p values (Holm 1979), by name."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(values, key=lambda key: values[key])):
        worst = max(worst, min(1.0, (len(values) - rank) * values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in values}


def first_rejection(hypotheses: int, seeds: int, alpha: float) -> float:
    """The observed effect, in standard deviations of the seeds' effects, at which Holm's first p falls below `alpha`.

    Args:
        hypotheses: in the correction.
        seeds: S, whose spread is all the noise there is.
    """
    from scipy.stats import t

    return float(t.isf(alpha / (2 * hypotheses), seeds - 1)) / float(np.sqrt(seeds))
