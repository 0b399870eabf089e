"""The laboratory's statistics and verdicts on tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from ops.lab import statistics, verdicts
from ops.lab.declaration import Lab, Part
from ops.lab.statistics import Arm, Effect, arm_of_cells, arm_of_rows, effect, holm

SEEDS = (0, 1, 2, 3, 4)


def arm(mean: float, *, seed: int, seed_sd: float = 0.02, questions: int = 40, benchmarks: int = 3) -> Arm:
    """Five seeds around `mean`; questions are shared between arms, answers are not."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    hardness = shared.normal(0, 0.1, (benchmarks, questions))
    rows = []
    for s in SEEDS:
        level = mean + rng.normal(0, seed_sd)
        for b in range(benchmarks):
            for q in range(questions):
                rows.append((s, f"b{b}", f"q{q}", float(level + hardness[b, q] + rng.normal(0, 0.05))))
    return arm_of_rows(rows)


def test_the_mean_counts_seeds_and_benchmarks_equally_and_leaves_none_out() -> None:
    rows = [(0, "a", "q0", 1.0), (0, "a", "q1", None), (0, "b", "q0", 0.0), (0, "b", "q1", 0.0), (0, "b", "q2", 1.0)]
    rows += [(1, "a", "q0", 0.0), (1, "a", "q1", 0.0), (1, "b", "q0", 0.0), (1, "b", "q1", None), (1, "b", "q2", None)]
    found = effect(arm_of_rows(rows))
    assert found is not None and found.by_seed == {0: pytest.approx((1 + 1 / 3) / 2), 1: 0.0}
    assert found.value == pytest.approx(1 / 3)
    pooled = effect(arm_of_rows(rows, pooled=True))
    assert pooled is not None and pooled.by_seed == {0: pytest.approx(2 / 4), 1: 0.0}


def test_differences_are_paired_by_seed() -> None:
    first = arm_of_cells({0: 0.9, 1: 0.5, 2: 0.1, 7: 0.0})
    second = arm_of_cells({0: 0.8, 1: 0.4, 2: 0.0, 3: 1.0})
    found = effect(first, second)
    assert found is not None and set(found.by_seed) == {0, 1, 2}
    assert found.value == pytest.approx(0.1) and found.error == pytest.approx(0.0, abs=1e-9)
    assert effect(first, arm_of_cells({9: 1.0})) is None


def test_one_seed_has_no_interval_and_no_test() -> None:
    found = effect(arm_of_cells({4: 0.5}))
    assert found is not None and found.low is None and found.one_sided(0.0) is None


def test_the_error_over_seeds_is_that_of_the_mean() -> None:
    """One value per seed: the corrected bootstrap gives s / sqrt(S)."""
    values = {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.7}
    found = effect(arm_of_cells(values), samples=20_000)
    assert found is not None
    assert found.error == pytest.approx(np.std(list(values.values()), ddof=1) / 2, rel=0.02)


def test_questions_alone_give_the_error_over_questions() -> None:
    """Equal seeds: what remains is the questions' share, which more seeds do not reduce."""
    values = np.random.default_rng(0).random(50)
    found = effect(
        arm_of_rows([(s, "b", f"q{i}", float(v)) for s in SEEDS for i, v in enumerate(values)]), samples=20_000
    )
    assert found is not None and found.error == pytest.approx(np.std(values) / np.sqrt(50), rel=0.03)


def test_a_known_difference_lies_in_the_interval_as_often_as_claimed() -> None:
    inside = 0
    for run in range(60):
        found = effect(arm(0.6, seed=2 * run), arm(0.5, seed=2 * run + 1), samples=200)
        assert found is not None and found.low is not None and found.high is not None
        inside += found.low <= 0.1 <= found.high
    assert inside >= 53  # of 57 expected at 95%


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def lab(parts: list[dict[str, object]], **more: object) -> Lab:
    block = {"conditions": ["c"], "methods": ["sft", "fgrpo", "grpo-t"], "seeds": [0, 1, 2]}
    return Lab.model_validate(
        {
            "title": "t", "question": "q", "preset": "smoke", "stopping": {"rule": "r"},
            "primary": {"metric": "accuracy"},
            "conditions": {"c": {"about": "a"}},
            "methods": {"sft": {}, "fgrpo": {}, "grpo-t": {}},
            "grid": [block],
            "hypotheses": {"H1": {"claim": "x", "conditions": ["c"], "parts": parts}},
            **more,
        }
    )  # fmt: skip


def sure(value: float, error: float = 0.001, seeds: int = 5) -> Effect:
    return Effect(value, dict.fromkeys(range(seeds), value), error, value - 3 * error, value + 3 * error)


PART = {"metric": "accuracy", "a": "fgrpo", "b": "grpo-t", "direction": "above", "margin": 0.0}


@pytest.mark.parametrize(
    ("change", "found", "outcome"),
    [
        ({}, sure(0.1), "supported"),
        ({}, sure(-0.1), "refuted"),
        ({}, sure(0.0005), "undecided"),
        ({"direction": "below"}, sure(0.1), "refuted"),
        ({"direction": "below"}, sure(-0.1), "supported"),
        ({"margin": 0.2}, sure(0.1), "refuted"),
        ({"margin": -0.01}, sure(0.0), "supported"),
        ({"direction": "below", "margin": 0.2}, sure(-0.1), "refuted"),
        ({"direction": "below", "margin": -0.2}, sure(0.1), "supported"),
        ({}, sure(0.1, seeds=2), "undecided"),
        ({}, None, "undecided"),
    ],
)
def test_direction_and_margin_alone_decide(change: dict[str, object], found: Effect | None, outcome: str) -> None:
    (verdict,) = verdicts.decide(lab([{**PART, **change}]), lambda condition, part: found)
    assert verdict.outcome == outcome
    assert bool(verdict.missing) == (found is None or found.seeds < 3)


def test_a_claim_of_two_parts_needs_both() -> None:
    declared = lab([PART, {**PART, "metric": "inconsistency", "direction": "below"}])

    def outcome(first: float, second: float) -> str:
        def found(condition: str, part: Part) -> Effect:
            return sure(first if part.metric == "accuracy" else second)

        return verdicts.decide(declared, found)[0].outcome

    assert outcome(0.1, -0.1) == "supported" and outcome(0.1, 0.1) == "refuted"
    assert outcome(0.1, 0.0001) == "undecided" and outcome(0.0001, 0.1) == "refuted"


def test_more_hypotheses_make_each_harder() -> None:
    found = sure(0.1, error=0.028)  # p = .023 two-sided with four degrees of freedom
    one = lab([PART])
    twin = one.model_copy(
        update={"hypotheses": {"H1": one.hypotheses["H1"], "H2": one.hypotheses["H1"], "H3": one.hypotheses["H1"]}}
    )
    assert [v.outcome for v in verdicts.decide(one, lambda c, p: found)] == ["supported"]
    assert [v.outcome for v in verdicts.decide(twin, lambda c, p: found)] == ["undecided"] * 3


def test_a_declaration_names_what_it_declares() -> None:
    with pytest.raises(ValueError, match="the grid has no such cell"):
        lab([{**PART, "b": "sft"}], grid=[{"conditions": ["c"], "methods": ["fgrpo", "grpo-t"], "seeds": [0]}])
    with pytest.raises(ValueError, match="H1 names 'acuracy'"):
        lab([{**PART, "metric": "acuracy"}])
    with pytest.raises(ValueError, match="H1 names 'forcd/'"):
        lab([{**PART, "metric": "cell/forcd/true"}])
    assert statistics.arm_of_cells({}).seeds == ()
