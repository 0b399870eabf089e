"""The laboratory's statistics on tables whose truth is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import t as student

from ops.lab import statistics
from ops.lab.arms import Arm, arm_of_cells, arm_of_rows
from ops.lab.first_published import as_first_published
from ops.lab.over_conditions import mean_of_conditions, satterthwaite
from ops.lab.statistics import Effect, effect, estimate, first_rejection, holm, tail

SEEDS = (0, 1, 2, 3, 4)
LEVEL = 0.05 / 19  # of Holm's first rejection among 19 hypotheses


def crossed(rng: np.random.Generator, seeds: int, questions: int, of_seeds: float, of_noise: float) -> tuple[Arm, Arm]:
    """Two arms of equal truth: a_s, c_q and d_sq in the difference, with deviations `of_seeds`, 0.1 and `of_noise`."""
    shared_QS = rng.normal(0, 0.3, (questions, 1)) + rng.normal(0, 0.1, (questions, seeds))
    difference_QS = rng.normal(0, of_seeds, seeds) + rng.normal(0, 0.1, (questions, 1))
    difference_QS = difference_QS + rng.normal(0, of_noise, (questions, seeds))
    ones = np.ones(seeds)
    first, second = (
        {f"q{i}": (row, ones) for i, row in enumerate(values)} for values in (shared_QS + difference_QS, shared_QS)
    )
    return Arm(tuple(range(seeds)), {"b": first}), Arm(tuple(range(seeds)), {"b": second})


@cache
def simulated(runs: int, seeds: int, questions: int, of_seeds: float, of_noise: float) -> tuple[Effect, ...]:
    rng = np.random.default_rng(7)
    found = (effect(*crossed(rng, seeds, questions, of_seeds, of_noise), samples=200) for _ in range(runs))
    return tuple(one for one in found if one is not None and one.error is not None)


NOISY = (220, 5, 60, 0.02, 0.4)  # questions and noise within a seed matter most


# --- means and pairing -------------------------------------------------------------------------------------------------


def test_the_mean_counts_seeds_and_benchmarks_equally_and_leaves_none_out() -> None:
    rows = [(0, "a", "q0", 1.0), (0, "a", "q1", None), (0, "b", "q0", 0.0), (0, "b", "q1", 0.0), (0, "b", "q2", 1.0)]
    rows += [(1, "a", "q0", 0.0), (1, "a", "q1", 0.0), (1, "b", "q0", 0.0), (1, "b", "q1", None), (1, "b", "q2", None)]
    found = effect(arm_of_rows(rows))
    assert found is not None and found.by_seed == {0: pytest.approx((1 + 1 / 3) / 2), 1: 0.0}
    assert found.value == pytest.approx(1 / 3)
    pooled = effect(arm_of_rows(rows, pooled=True))
    assert pooled is not None and pooled.by_seed == {0: pytest.approx(2 / 4), 1: 0.0}
    assert arm_of_rows(rows).answers().tolist() == [4, 3]


def test_differences_are_paired_by_seed() -> None:
    first = arm_of_cells({0: 0.9, 1: 0.5, 2: 0.1, 7: 0.0})
    second = arm_of_cells({0: 0.8, 1: 0.4, 2: 0.02, 3: 1.0})
    found = effect(first, second)
    assert found is not None and set(found.by_seed) == {0, 1, 2}
    assert found.value == pytest.approx(0.28 / 3) and found.error == pytest.approx(0.02 / 3)
    assert effect(first, arm_of_cells({9: 1.0})) is None


def test_one_seed_has_no_interval_and_no_test() -> None:
    found = effect(arm_of_cells({4: 0.5}))
    assert found is not None and found.low is None and found.one_sided(0.0) is None


def test_missing_values_are_named() -> None:
    a = arm_of_rows([(s, b, "q", float(s)) for s in (0, 1) for b in "xy" if (s, b) != (1, "y")], name="fgrpo")
    b = arm_of_rows([(s, b, "q", 0.5) for s in (0, 1) for b in "xz"], name="sft")
    found = effect(a, b)
    assert found is not None and found.gaps == (
        "fgrpo has no value in z, which sft has; it counts in neither",
        "fgrpo, seed 1, has no value in y",
        "sft has no value in y, which fgrpo has; it counts in neither",
    )
    whole = effect(b, b)
    assert whole is not None and whole.gaps == ()


# --- errors ------------------------------------------------------------------------------------------------------------


def test_the_error_over_seeds_is_that_of_the_mean() -> None:
    """One value per seed: s / sqrt(S), and Student's t."""
    values = {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.7}
    found = effect(arm_of_cells(values))
    assert found is not None and found.error == pytest.approx(np.std(list(values.values()), ddof=1) / 2)
    assert found.one_sided(0.0) == pytest.approx(
        (student.sf(0.35 / found.error, 3), student.cdf(0.35 / found.error, 3))
    )
    assert found.high == pytest.approx(0.35 + student.ppf(0.975, 3) * found.error, rel=1e-4)


def test_questions_alone_give_the_error_over_questions() -> None:
    """Nearly equal seeds: what remains is the questions' share, which more seeds do not reduce."""
    values = np.random.default_rng(0).random(50)
    rows = [(s, "b", f"q{i}", float(v) + 1e-6 * s) for s in SEEDS for i, v in enumerate(values)]
    found = effect(arm_of_rows(rows), samples=20_000)
    assert found is not None and found.error == pytest.approx(np.std(values) / np.sqrt(50), rel=0.03)


@pytest.mark.parametrize("case", [NOISY, (100, 4, 60, 0.1, 0.0)])
def test_the_error_counts_the_noise_within_a_seed_once(case: tuple[int, int, int, float, float]) -> None:
    """Over simulated laboratories the mean square of the error is the variance of the effect; it was up to 2.5 times that."""
    runs, seeds, questions, of_seeds, of_noise = case
    true = of_seeds**2 / seeds + 0.1**2 / questions + of_noise**2 / (seeds * questions)
    found = simulated(*case)
    assert len(found) == runs
    assert 0.85 < np.mean([(one.error or 0.0) ** 2 for one in found]) / true < 1.15
    assert 0.75 < np.var([one.value for one in found]) / true < 1.25
    expected = true + 2 * of_noise**2 / (seeds * questions)
    assert 0.85 < np.mean([(one.first_error or 0.0) ** 2 for one in found]) / expected < 1.15


def test_intervals_hold_the_truth_about_as_often_as_claimed() -> None:
    """From below and from above; the first version was too wide."""
    found = simulated(*NOISY)
    inside = [one.low <= 0.0 <= one.high for one in found if one.low is not None and one.high is not None]
    assert 0.93 <= np.mean(inside) <= 0.985
    old = [one.one_sided(0.0) for one in map(as_first_published, found) if one is not None]
    assert np.mean([min(p or (0.0, 0.0)) > 0.025 for p in old]) > 0.985


def test_the_two_parts_of_the_error_keep_their_own_degrees_of_freedom() -> None:
    """At Holm's level Behrens and Fisher's test keeps its promise whatever the parts' ratio; Satterthwaite's t does not."""
    rng, runs = np.random.default_rng(3), 8000
    worst = 0.0
    for ratio in (0.03, 0.1, 1.0):  # the questions' variance by the seeds'
        spread, draw = rng.chisquare(2, runs) / 2, np.abs(rng.normal(0, np.sqrt(1 + ratio), runs))
        # only draws near a rejection need the integral
        far = [(float(x), float(v)) for x, v in zip(draw, spread, strict=True) if x > 2.5 * np.sqrt(v + ratio)]
        ours = sum(2 * tail(x, (v, 2.0), (ratio, 1299.0)) < LEVEL for x, v in far) / runs
        df = [(v + ratio) ** 2 / (v**2 / 2 + ratio**2 / 1299) for _, v in far]
        single = [2 * student.sf(x / np.sqrt(v + ratio), d) < LEVEL for (x, v), d in zip(far, df, strict=True)]
        assert ours <= 2 * LEVEL
        worst = max(worst, sum(single) / runs)
    assert worst > 5 * LEVEL


def test_a_tail_is_that_of_its_larger_part() -> None:
    assert tail(4.0, (1.0, 2.0), (0.0, 9.0)) == pytest.approx(student.sf(4.0, 2))
    assert tail(2.0, (1e-9, 2.0), (1.0, 9.0)) == pytest.approx(student.sf(2.0, 9), rel=0.02)
    both = tail(3.0, (1.0, 40.0), (1.0, 40.0))
    draws = np.random.default_rng(0).standard_t(40, (2, 400_000)).sum(axis=0)
    assert both == pytest.approx(np.mean(draws > 3.0), rel=0.03)
    assert tail(-3.0, (1.0, 40.0), (1.0, 40.0)) == pytest.approx(1 - both)


# --- seeds without spread ----------------------------------------------------------------------------------------------


def test_equal_seeds_have_no_test() -> None:
    found = effect(arm_of_cells({0: 1.0, 1: 1.0, 2: 1.0}), arm_of_cells({0: 0.99, 1: 0.99, 2: 0.99}))
    assert found is not None and found.value == pytest.approx(0.01)
    assert found.untestable == statistics.NO_SPREAD and found.one_sided(0.0) is None and found.low is None
    assert found.levels == ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.99, 1: 0.99, 2: 0.99})
    old = as_first_published(found)
    assert old is not None and old.one_sided(0.0) == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize(("right", "reason"), [((90, 90, 91), statistics.WITHIN_ONE_ANSWER), ((90, 92, 94), "")])
def test_a_spread_below_one_answer_has_no_test(right: tuple[int, ...], reason: str) -> None:
    rows = [(s, "b", f"q{i}", float(i < count)) for s, count in enumerate(right) for i in range(100)]
    found = effect(arm_of_rows(rows), samples=50)
    assert found is not None and found.untestable == reason and (found.error is None) == bool(reason)
    shares = effect(arm_of_cells({s: count / 100 for s, count in enumerate(right)}, dict.fromkeys(range(3), 100)))
    assert shares is not None and shares.untestable == reason
    continuous = effect(arm_of_cells({s: count / 100 for s, count in enumerate(right)}))
    assert continuous is not None and not continuous.untestable


def test_seeds_that_most_draws_leave_without_a_value_have_no_test() -> None:
    rows = [(s, "b", f"q{i}", s / 10 if i == s else None) for s in range(3) for i in range(30)]
    every = [(3, "b", f"q{i}", 0.5) for i in range(30)]
    found = effect(arm_of_rows([*rows, *every]), samples=100)
    assert found is not None and found.untestable == statistics.TOO_FEW and found.seeds == 4


# --- several hypotheses, several conditions ----------------------------------------------------------------------------


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_the_smallest_effect_of_a_first_rejection_is_at_its_level() -> None:
    needed = first_rejection(19, 3, 0.05)
    values = {0: needed - 1.0, 1: needed, 2: needed + 1.0}  # a standard deviation of 1
    found = effect(arm_of_cells(values))
    assert found is not None and 2 * min(found.one_sided(0.0) or (1.0, 1.0)) == pytest.approx(LEVEL)
    assert needed == pytest.approx(11.2, abs=0.1) and first_rejection(1, 3, 0.05) == pytest.approx(2.48, abs=0.01)


def of_condition(value: float, of_seeds: float, of_questions: float, df: float = 2.0) -> Effect:
    whole = estimate(value, (of_seeds, df), (of_questions, 99.0), 0.95)
    return Effect(**vars(whole), by_seed={0: value, 1: value, 2: value})


def test_conditions_share_their_questions_and_not_their_seeds() -> None:
    conditions = [of_condition(0.1, 4e-4, 1e-4), of_condition(0.3, 4e-4, 1e-4)]
    found = mean_of_conditions(conditions, 0.95)
    assert found is not None and found.value == pytest.approx(0.2) and found.noise is not None
    seeds, questions = found.noise
    assert seeds == pytest.approx((2e-4, 4.0)) and questions == pytest.approx((1e-4, 99.0))
    flat = Effect(value=0.1, by_seed={0: 0.1, 1: 0.1, 2: 0.1}, untestable=statistics.NO_SPREAD)
    assert mean_of_conditions([*conditions, flat], 0.95) is None


def test_the_degrees_of_freedom_of_a_sum() -> None:
    assert satterthwaite([(1.0, 2.0), (1.0, 2.0), (1.0, 2.0)]) == pytest.approx((3.0, 6.0))
    assert satterthwaite([(1.0, 2.0), (1e-9, 50.0)])[1] == pytest.approx(2.0, rel=1e-3)
