"""Cohen's kappa of two raters with a bootstrap interval, confusion matrices, and error rates (Appendix B.3): pure arithmetic.

A rating is a label of a judge, or one of the words of `NOT_RATED`, which enter no statistic and are counted per rater.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAILED, NOT_APPLICABLE, BY_RULE, MISSING = "failed", "not applicable", "decided by a rule", "not judged"
NOT_RATED = (FAILED, NOT_APPLICABLE, BY_RULE, MISSING)
_CHUNK = 250_000  # weights drawn at once


@dataclass(frozen=True)
class Pair:
    """Two ratings of one thing. Things of one `cluster` (sentences of a rollout) are resampled together."""

    cluster: Hashable
    first: str
    second: str


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters.

    Attributes:
        role: what was rated, "consistency" or "semantic_grounding".
        labels: in the order of rows and columns of `confusion`; the first rater's labels are its rows.
        n: things that both raters labelled, in `clusters` independent clusters.
        agreement: share of equal labels; None if n is 0.
        kappa: None if undefined: n is 0, or both used one same label only (which shows nothing).
        low, high: percentile bootstrap interval of kappa over clusters; None if kappa is undefined here or in all resamples.
        left_out: number of things without a label, by "<rater>: <state>".
    """

    role: str
    first: str
    second: str
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int
    clusters: int
    agreement: float | None
    kappa: float | None
    low: float | None
    high: float | None
    left_out: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ErrorRate:
    """Wrong labels among things of one kind; `low` and `high` are Wilson's interval of `rate`.

    `failed` things have no label and are not in `n`. `labels` counts all labels, right and wrong.
    """

    kind: str
    n: int
    wrong: int
    failed: int
    rate: float | None
    low: float | None
    high: float | None
    labels: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def kappa(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Cohen's kappa of confusion matrices (…, K, K).

    NaN without things, or if both raters use one same label only (agreement by chance is then certain).
    """
    counts = np.asarray(confusion, float)
    total = counts.sum((-2, -1))
    observed = np.trace(counts, axis1=-2, axis2=-1) * total
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # counts scaled by total squared, so that certain agreement by chance compares exactly
        values: NDArray[np.float64] = (observed - chance) / (total * total - chance)
    return values


def compare(
    role: str,
    first: str,
    second: str,
    pairs: Iterable[Pair],
    labels: Sequence[str],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Agreement of the raters called `first` and `second`.

    Args:
        labels: all labels, in printing order.
        samples, confidence, seed: of the bootstrap.

    Raises:
        ValueError: a rating is neither one of `labels` nor one of `NOT_RATED`.
    """
    place = {label: i for i, label in enumerate(labels)}
    left_out: Counter[str] = Counter()
    tables: dict[Hashable, NDArray[np.int64]] = {}
    for pair in pairs:
        ratings = (pair.first, pair.second)
        for rater, rating in zip((first, second), ratings, strict=True):
            if rating in NOT_RATED:
                left_out[f"{rater}: {rating}"] += 1
            elif rating not in place:
                raise ValueError(f"{role}: {rater} says {rating!r}, which is none of {', '.join(labels)}")
        if ratings[0] in place and ratings[1] in place:
            table = tables.setdefault(pair.cluster, np.zeros((len(labels), len(labels)), np.int64))
            table[place[ratings[0]], place[ratings[1]]] += 1
    stacked_CKK = np.stack(list(tables.values())) if tables else np.zeros((0, len(labels), len(labels)), np.int64)
    confusion_KK = stacked_CKK.sum(0)
    n, value = int(confusion_KK.sum()), float(kappa(confusion_KK))
    low, high = _interval(stacked_CKK, samples, confidence, seed) if math.isfinite(value) else (None, None)
    return Agreement(
        role,
        first,
        second,
        tuple(labels),
        tuple(tuple(int(v) for v in row) for row in confusion_KK),
        n,
        len(tables),
        float(np.trace(confusion_KK)) / n if n else None,
        value if math.isfinite(value) else None,
        low,
        high,
        dict(sorted(left_out.items())),
    )


def _interval(
    stacked_CKK: NDArray[np.int64], samples: int, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    """Percentile interval of kappa over resampled clusters; undefined resamples are left out."""
    count, size = len(stacked_CKK), stacked_CKK.shape[-1]
    rng = np.random.default_rng(seed)
    flat_CL = stacked_CKK.reshape(count, -1)
    draws = []
    at_once = max(1, _CHUNK // count)
    for begin in range(0, samples, at_once):
        weights_BC = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, samples - begin))
        draws.append(kappa((weights_BC @ flat_CL).reshape(-1, size, size)))
    values = np.concatenate(draws)
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def error_rate(kind: str, ratings: Iterable[tuple[str, str]], confidence: float = 0.95) -> ErrorRate:
    """How often the rating in (true label, rating) is wrong. `NOT_RATED` ratings count as failed, not as wrong."""
    from scipy.stats import binomtest

    labels: Counter[str] = Counter()
    n = wrong = failed = 0
    for truth, rating in ratings:
        if rating in NOT_RATED:
            failed += 1
            continue
        n += 1
        wrong += rating != truth
        labels[rating] += 1
    if not n:
        return ErrorRate(kind, 0, 0, failed, None, None, None, {})
    interval = binomtest(wrong, n).proportion_ci(confidence, method="wilson")
    return ErrorRate(
        kind, n, wrong, failed, wrong / n, float(interval.low), float(interval.high), dict(sorted(labels.items()))
    )
