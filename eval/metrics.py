"""Metrics of the paper's tables (Section 4.1, Appendix B) with intervals and paired tests. numpy and scipy only.

A value is a number, a bool, a `Score`, or None. None and scores that are not applicable or failed are left out, never counted
as 0. Shares are fractions in [0, 1]; the tables print percent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.judge_validation.stats import kappa
from fgrpo.types import Score

Value = float | bool | Score | None
Group = TypeVar("Group", bound=Hashable)


def values(items: Iterable[Value]) -> list[float]:
    """The numbers among `items`."""
    plain = (item.value if isinstance(item, Score) else item for item in items)
    return [float(v) for v in plain if v is not None]


def mean(items: Iterable[Value]) -> float | None:
    """Mean of the items with a value; None if there is none."""
    numbers = values(items)
    return sum(numbers) / len(numbers) if numbers else None


def accuracy(correct: Iterable[Value]) -> float | None:
    """Share of correct answers (pass@1). The caller passes 0 for an unresolved answer."""
    return mean(correct)


def inconsistency_rate(consistency: Iterable[Value]) -> float | None:
    """Share of responses whose answer does not follow from their trace, over right and wrong answers (Section 4.1)."""
    rate = mean(consistency)
    return None if rate is None else 1.0 - rate


def semantic_grounding(scores: Iterable[Value]) -> float | None:
    """Mean over responses of the share of visual sentences that the image supports (Appendix A.1, Figure 3)."""
    return mean(scores)


def spatial_grounding(scores: Iterable[Value]) -> float | None:
    """Mean over responses with annotated boxes of the matched CIoU (Eq. 1)."""
    return mean(scores)


def _plain(value: Value) -> float | None:
    return value.value if isinstance(value, Score) else value


def pairs(correct: Sequence[Value], groups: Sequence[Group]) -> dict[Group, float | None]:
    """By group (MMVP's pairs), in order: 1 if every member is correct, else 0; None if a member has no value."""
    members: dict[Group, list[float | None]] = {}
    for value, group in zip(correct, groups, strict=True):
        plain = _plain(value)
        members.setdefault(group, []).append(None if plain is None else float(plain))
    return {name: None if None in group else float(all(v == 1.0 for v in group)) for name, group in members.items()}


def bootstrap_means(
    items: Sequence[Value], *, samples: int = 2000, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> NDArray[np.float64] | None:
    """(samples,) means of resampled data; None if nothing has a value.

    Args:
        samples: bootstrap draws.
        clusters: one label per item; clusters are resampled as units, since trials of one question are not independent.

    Raises:
        ValueError: the numbers of items and clusters differ.
    """
    plain = [_plain(item) for item in items]
    labels = list(clusters) if clusters is not None else list(range(len(plain)))
    if len(labels) != len(plain):
        raise ValueError(f"{len(plain)} values and {len(labels)} clusters")
    sums: dict[Hashable, list[float]] = {}
    for value, label in zip(plain, labels, strict=True):
        if value is not None:
            entry = sums.setdefault(label, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += 1.0
    if not sums:
        return None
    table_C2 = np.array(list(sums.values()))
    count = len(table_C2)
    totals_B2 = _resampled(seed, count, samples) @ table_C2
    means: NDArray[np.float64] = totals_B2[:, 0] / totals_B2[:, 1]
    return means


@lru_cache(maxsize=8)
def _resampled(seed: int, count: int, samples: int) -> NDArray[np.float64]:
    """(samples, count): how often each of `count` clusters is drawn. Cached: most metrics have the same number of questions."""
    drawn_BC = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=samples)
    return drawn_BC.astype(np.float64)


def interval(draws: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_ci(
    items: Sequence[Value],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float] | None:
    """(low, high): percentile bootstrap interval of the mean; None if nothing has a value. See `bootstrap_means`."""
    draws = bootstrap_means(items, samples=samples, seed=seed, clusters=clusters)
    return None if draws is None else interval(draws, confidence)


@dataclass(frozen=True)
class McNemar:
    """Paired comparison of two runs: `only_a` questions are 1 in the first alone, `only_b` in the second alone."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Sequence[Value], b: Sequence[Value]) -> McNemar:
    """Exact two-sided McNemar test (binomial on the discordant pairs). Pairs with a missing value are left out.

    A run against itself gives p = 1. Raises ValueError if the lengths differ.
    """
    from scipy.stats import binomtest

    only_a = only_b = 0
    for x, y in zip(a, b, strict=True):
        first, second = _plain(x), _plain(y)
        if first is not None and second is not None:
            only_a += first > second
            only_b += second > first
    total = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, total, 0.5).pvalue) if total else 1.0)


def paired_bootstrap(
    a: Sequence[Value],
    b: Sequence[Value],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float] | None:
    """(mean of b − a, low, high) over pairs with both values; None if there is none. See `bootstrap_means`."""
    gaps: list[float | None] = []
    for x, y in zip(a, b, strict=True):
        first, second = _plain(x), _plain(y)
        gaps.append(None if first is None or second is None else float(second) - float(first))
    draws = bootstrap_means(gaps, samples=samples, seed=seed, clusters=clusters)
    centre = mean(gaps)
    return None if draws is None or centre is None else (centre, *interval(draws, confidence))


def cohen_kappa(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Cohen's kappa of two raters' labels (Appendix B.3).

    NaN without items, or if both raters use a single label: agreement by chance is then certain. Raises ValueError if the lengths
    differ.
    """
    pairs = list(zip(a, b, strict=True))
    place = {label: i for i, label in enumerate(dict.fromkeys(label for pair in pairs for label in pair))}
    confusion_KK = np.zeros((len(place), len(place)), np.int64)
    for x, y in pairs:
        confusion_KK[place[x], place[y]] += 1
    return float(kappa(confusion_KK))
