"""Metrics against hand-worked cases, scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import cohen_kappa_score

from eval import metrics
from fgrpo.types import Score


def test_none_is_never_zero() -> None:
    scores = [Score.of(1), Score.of(0), Score.not_applicable("x"), Score.failure("y"), None]
    assert metrics.accuracy(scores) == 0.5
    assert metrics.inconsistency_rate([1, 1, 1, 0, None]) == 0.25
    assert metrics.semantic_grounding([None, Score.failure("y")]) is None
    assert metrics.inconsistency_rate([]) is None


def test_pair_accuracy_needs_both() -> None:
    assert metrics.pairs([1, 1, 1, 0, 1, 1, None], list("ppqqrss")) == {"p": 1.0, "q": 0.0, "r": 1.0, "s": None}


def test_bootstrap_interval_covers_the_normal_one() -> None:
    values = [1.0] * 80 + [0.0] * 20
    low, high = metrics.bootstrap_ci(values, samples=4000) or (0, 0)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 100)
    assert low == pytest.approx(0.8 - spread, abs=0.015) and high == pytest.approx(0.8 + spread, abs=0.015)
    assert metrics.bootstrap_ci(values) == metrics.bootstrap_ci(values)
    assert metrics.bootstrap_ci([None]) is None


def test_clusters_widen_the_interval() -> None:
    values = [1.0, 1.0, 0.0, 0.0] * 25
    alone = metrics.bootstrap_ci(values) or (0, 0)
    together = metrics.bootstrap_ci(values, clusters=[i // 2 for i in range(100)]) or (0, 0)
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(math.sqrt(2), abs=0.15)


def test_bootstrap_mean_of_a_constant_has_no_width() -> None:
    assert metrics.bootstrap_ci([1.0] * 5) == (1.0, 1.0)


def test_mcnemar_is_the_exact_binomial() -> None:
    a, b = [1] * 8 + [0] * 2 + [1] * 5, [0] * 8 + [1] * 2 + [1] * 5
    found = metrics.mcnemar(a, b)
    assert (found.only_a, found.only_b) == (8, 2)
    assert found.p == pytest.approx(binomtest(8, 10, 0.5).pvalue) == pytest.approx(0.109375)
    assert metrics.mcnemar(a, a) == metrics.McNemar(0, 0, 1.0)
    assert metrics.mcnemar([1, None], [0, 0]).only_a == 1


def test_paired_bootstrap_of_a_run_with_itself_is_zero() -> None:
    assert metrics.paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)
    gap = metrics.paired_bootstrap([0, 0, 0, 0], [1, 1, 1, 0])
    assert gap is not None and gap[0] == 0.75 and gap[1] < gap[0] < gap[2] + 1e-9


def test_kappa_by_hand_and_by_sklearn() -> None:
    a, b = ["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert metrics.cohen_kappa(a, b) == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 60).tolist(), rng.integers(0, 3, 60).tolist()
    assert metrics.cohen_kappa(x, y) == pytest.approx(cohen_kappa_score(x, y))
    assert math.isnan(metrics.cohen_kappa(["y"] * 3, ["y"] * 3)) and math.isnan(metrics.cohen_kappa([], []))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError):
        metrics.mcnemar([1], [1, 0])
    with pytest.raises(ValueError):
        metrics.bootstrap_ci([1.0], clusters=["a", "b"])


def test_bootstrap_interval_is_scipys() -> None:
    rng = np.random.default_rng(3)
    found = rng.uniform(size=60)
    ours = metrics.bootstrap_ci(found.tolist(), samples=20000, confidence=0.9)
    theirs = bootstrap((found,), np.mean, n_resamples=20000, confidence_level=0.9, method="percentile", rng=rng)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


def test_paired_bootstrap_is_scipys() -> None:
    """And narrower than the difference of two independent intervals, since the questions are the same."""
    rng = np.random.default_rng(4)
    a = rng.integers(0, 2, 80)
    b = np.where(rng.uniform(size=80) < 0.2, 1 - a, a)
    ours = metrics.paired_bootstrap(a.tolist(), b.tolist(), samples=20000)
    theirs = bootstrap(
        (a, b), lambda x, y, axis: np.mean(y, axis) - np.mean(x, axis), n_resamples=20000, method="percentile",
        paired=True, vectorized=True, rng=rng,
    )  # fmt: skip
    assert ours is not None and ours[0] == pytest.approx(np.mean(b) - np.mean(a))
    assert ours[1:] == pytest.approx(tuple(theirs.confidence_interval), abs=0.013)  # one question is 0.0125
    alone = metrics.bootstrap_ci(a.tolist(), samples=20000) or (0, 0)
    assert ours[2] - ours[1] < 1.2 * (alone[1] - alone[0])


def test_mcnemar_by_hand() -> None:
    """2 x (C(6,0) + C(6,1)) / 2^6 = 14/64: one against five discordant questions, whatever agrees."""
    a, b = [1] + [0] * 5 + [1] * 40 + [0] * 7, [0] + [1] * 5 + [1] * 40 + [0] * 7
    assert metrics.mcnemar(a, b) == metrics.McNemar(1, 5, pytest.approx(14 / 64))  # type: ignore[arg-type]
    assert metrics.mcnemar(b, a).p == pytest.approx(14 / 64)
    assert metrics.mcnemar([1] * 9, [0] * 9).p == pytest.approx(2 / 2**9)
