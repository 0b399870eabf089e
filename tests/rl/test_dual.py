"""Eqs. 4 and 5 by hand, the bounds, and what a checkpoint carries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.dual import Constraint, DualAscent

NAN = math.nan


def one(tau: float = 0.9, kind: str = "adaptive", **more: float) -> DualAscent:
    gains = {key: more.pop(key) for key in ("kp", "kd") if key in more}
    return DualAscent([Constraint("c", tau, **more)], kind, **gains)


def column(*values: float) -> list[list[float]]:
    return [[v] for v in values]


def test_a_step_by_hand() -> None:
    """Ten rollouts, two not applicable, six of eight consistent: mean .75, τ = .95, so
    λ = 1 - .05 (.75 - .95) = 1 + .01 = 1.01. Then mean 1.0: λ = 1.01 - .05 * .05 = 1.0075."""
    dual = one(0.95)
    assert dual.weights() == [1.0, 1.0]
    (step,) = dual.step(column(1, 1, 1, 1, 1, 1, 0, 0, NAN, NAN))
    assert (step.mean, step.applicable, step.moved) == (0.75, 8, True)
    assert step.violation == pytest.approx(0.2)
    assert dual.lam["c"] == pytest.approx(1.01)
    dual.step(column(*[1.0] * 8))
    assert dual.weights() == pytest.approx([1.0, 1.0075])


@pytest.mark.parametrize(("batch", "needed"), [(2, 2), (8, 2), (24, 3), (63, 7), (64, 8), (4096, 8)])
def test_how_many_applicable_rollouts_are_enough(batch: int, needed: int) -> None:
    """An eighth of the batch, at least 2, at most Table 6's 8; a number that was set stands."""
    assert Constraint("c", 0.9).needed(batch) == needed and Constraint("c", 0.9, min_applicable=5).needed(batch) == 5
    dual = one()
    scores = [*[0.0] * needed, *[NAN] * (batch - needed)]
    assert dual.step(column(*scores))[0].moved
    scores[0] = NAN
    assert not dual.step(column(*scores))[0].moved


def test_too_few_applicable_rollouts_leave_lambda_alone() -> None:
    dual = one(min_applicable=8)
    (step,) = dual.step(column(*[0.0] * 7, *[NAN] * 9))
    assert not step.moved and dual.lam["c"] == 1.0 and step.mean == 0.0
    assert step.bound_steps is None  # it goes nowhere
    (step,) = dual.step(column(*[NAN] * 16))
    assert step.mean is None and step.applicable == 0 and dual.lam["c"] == 1.0


def test_fixed_never_moves_but_reports() -> None:
    dual = one(kind="fixed")
    (step,) = dual.step(column(*[0.0] * 20))
    assert dual.lam["c"] == 1.0 and step.violation == pytest.approx(0.9) and not step.saturated


def test_bounds_saturation_and_steps_to_the_bound() -> None:
    """From 1 to 5 at .05 * .9 = .045 a step: ceil(3.955 / .045) = 88 after the first step."""
    dual = one()
    (step,) = dual.step(column(*[0.0] * 8))
    assert step.bound_steps == math.ceil((5 - 1.045) / 0.045)
    for _ in range(100):
        (step,) = dual.step(column(*[0.0] * 8))
    assert dual.lam["c"] == 5.0 and step.saturated and step.bound_steps is None and step.at_bound > 5
    (step,) = dual.step(column(*[1.0] * 8))
    assert dual.lam["c"] == pytest.approx(4.995) and not step.saturated and step.at_bound == 0


def test_pid_by_hand_and_without_windup() -> None:
    """Errors .9 then .4 with lr .05, kp .5, kd .1: first 1 + .045 = 1.045 (no history);
    then .05 * .4 + .5 (.4 - .9) + .1 (.4 - 1.8 + .9) = .02 - .25 - .05 = -.28, so .765.
    After a long violation the first satisfied step leaves the bound at once: nothing has wound up behind it."""
    dual = one(kind="pid", kp=0.5, kd=0.1)
    dual.step(column(*[0.0] * 8))
    assert dual.lam["c"] == pytest.approx(1.045)
    dual.step(column(*[0.5] * 8))
    assert dual.lam["c"] == pytest.approx(0.765)
    for _ in range(500):
        dual.step(column(*[0.0] * 8))
    assert dual.lam["c"] == 5.0
    dual.step(column(*[1.0] * 8))
    assert dual.lam["c"] < 4.7


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=8, max_size=12), max_size=30),
    st.sampled_from(["adaptive", "fixed", "pid"]),
    st.floats(0, 3),
)
def test_lambda_stays_in_bounds(batches: list[list[float]], kind: str, kp: float) -> None:
    dual = one(0.5, kind, kp=kp, kd=kp, lam_max=1.5, lr=0.7, min_applicable=1)
    for batch in batches:
        dual.step(column(*batch))
        assert 0.0 <= dual.lam["c"] <= 1.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_saved_and_loaded_goes_on_alike(first: list[float], second: list[float]) -> None:
    dual = one(kind="pid", kp=0.3, kd=0.2)
    dual.step(column(*first))
    again = one(kind="pid", kp=0.3, kd=0.2)
    again.load_state_dict(dual.state_dict())
    assert dual.step(column(*second)) == again.step(column(*second))
    assert dual.state_dict() == again.state_dict()


def test_multipliers_are_loaded_by_name() -> None:
    """Another order of the constraints is the same set."""
    a, b = Constraint("a", 0.5, 1.0), Constraint("b", 0.5, 2.0)
    dual = DualAscent([a, b])
    dual.step([[0.0, 1.0]] * 16)
    other = DualAscent([b, a])
    other.load_state_dict(dual.state_dict())
    assert other.lam == dual.lam and other.weights() == [1.0, dual.lam["b"], dual.lam["a"]] != dual.weights()
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['a'\]"):
        DualAscent([a]).load_state_dict(dual.state_dict())


def test_another_constraint_set_is_refused_and_changes_nothing() -> None:
    dual = one()
    with pytest.raises(ValueError, match=r"\['other'\].*\['c'\]"):
        dual.load_state_dict(DualAscent([Constraint("other", 0.5)]).state_dict())
    broken = dual.state_dict()
    broken["states"]["c"]["lam"] = 7.0
    with pytest.raises(ValueError, match="outside"):
        dual.load_state_dict(broken)
    with pytest.raises(ValueError, match="not a saved dual state"):
        dual.load_state_dict({"lam": 1})
    assert dual.lam == {"c": 1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualAscent([Constraint("c", 0.5), Constraint("c", 0.6)]), "twice"),
        (lambda: DualAscent([], "sometimes"), "dual kind"),
        (lambda: Constraint("c", NAN), "finite"),
        (lambda: Constraint("c", 0.5, lam_init=6.0), "outside"),
        (lambda: Constraint("c", 0.5, lr=0.0), "above 0"),
        (lambda: one().step([[1.0, 2.0]]), "one score column"),
        (lambda: one().step(torch.tensor([[math.inf]])), "infinite"),
    ],
)
def test_wrong_input_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
