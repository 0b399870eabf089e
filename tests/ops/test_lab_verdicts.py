"""The laboratory's verdicts on effects whose truth is known, and the tests over conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from ops.lab import additions, planned, starts, verdicts
from ops.lab.declaration import Lab, Part
from ops.lab.over_conditions import combine
from ops.lab.statistics import NO_SPREAD, Effect, estimate

PART: dict[str, Any] = {"metric": "accuracy", "a": "fgrpo", "b": "grpo-t", "direction": "above", "margin": 0.0}


def lab(parts: list[dict[str, Any]], conditions: tuple[str, ...] = ("c",), **more: Any) -> Lab:
    block = {"conditions": conditions, "methods": ["sft", "fgrpo", "grpo-t"], "seeds": [0, 1, 2]}
    return Lab.model_validate(
        {
            "title": "t", "question": "q", "preset": "smoke", "stopping": {"rule": "r"},
            "primary": {"metric": "accuracy"},
            "conditions": {name: {"about": "a"} for name in conditions},
            "methods": {"sft": {}, "fgrpo": {}, "grpo-t": {}},
            "grid": [block],
            "hypotheses": {"H1": {"claim": "x", "conditions": conditions, "parts": parts}},
            **more,
        }
    )  # fmt: skip


def sure(value: float, error: float = 0.001, seeds: int = 5) -> Effect:
    whole = estimate(value, (error**2, seeds - 1.0), (0.0, 9.0), 0.95)
    return Effect(**vars(whole), by_seed=dict.fromkeys(range(seeds), value))


FLAT = Effect(value=0.1, by_seed=dict.fromkeys(range(5), 0.1), untestable=NO_SPREAD)


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
        ({}, FLAT, "undecided"),
    ],
)
def test_direction_and_margin_alone_decide(change: dict[str, Any], found: Effect | None, outcome: str) -> None:
    (verdict,) = verdicts.decide(lab([{**PART, **change}]), lambda condition, part: found)
    assert verdict.outcome == outcome
    assert bool(verdict.missing) == (found is None or found.seeds < 3)


def test_a_claim_of_two_parts_needs_both() -> None:
    declared = lab([PART, {**PART, "metric": "inconsistency", "direction": "below"}])

    def outcome(first: Effect, second: Effect) -> str:
        def found(condition: str, part: Part) -> Effect:
            return first if part.metric == "accuracy" else second

        return verdicts.decide(declared, found)[0].outcome

    assert outcome(sure(0.1), sure(-0.1)) == "supported" and outcome(sure(0.1), sure(0.1)) == "refuted"
    assert outcome(sure(0.1), sure(0.0001)) == "undecided" and outcome(sure(0.0001), sure(0.1)) == "refuted"
    assert outcome(sure(0.1), FLAT) == "undecided"  # no test of a part: the claim can still be refuted by the other
    assert outcome(sure(-0.1), FLAT) == "refuted"


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


# --- over conditions ---------------------------------------------------------------------------------------------------


def test_conditions_together_find_what_none_finds_alone() -> None:
    declared = lab([PART], ("c", "d", "e"))
    found = verdicts.decide(declared, lambda condition, part: sure(0.1, error=0.04, seeds=3))
    assert {v.outcome for v in found} == {"undecided"}
    (one,) = combine(declared, found)
    assert (one.outcome, one.conditions) == ("supported", ("c", "d", "e")) and one.p == one.p_holm < 0.05


def test_only_conditions_with_enough_seeds_enter() -> None:
    declared = lab([PART], ("c", "d", "e"))

    def found(condition: str, part: Part) -> Effect | None:
        return {"c": sure(0.1), "d": sure(-0.3, seeds=2), "e": None}[condition]

    (one,) = combine(declared, verdicts.decide(declared, found))
    assert (one.outcome, one.conditions, one.p) == ("undecided", ("c",), 1.0) and "1 of at least 2" in one.untested
    (one,) = combine(declared, verdicts.decide(declared, lambda c, p: FLAT if c == "d" else sure(0.1)))
    assert one.untested == "no test of a part in d"
    assert combine(lab([PART]), verdicts.decide(lab([PART]), found)) == []


# --- what differs between arms and over time ---------------------------------------------------------------------------


def test_where_arms_start_is_the_configuration_s_word() -> None:
    methods = {"sft": {}, "fgrpo": {}, "grpo-t": {}, "mr1": {}, "late": {"of": "grpo-t", "set": ["rl.start=anchor"]}}
    grid = [{"conditions": ["c"], "methods": list(methods), "seeds": [0]}]
    declared = lab([PART], methods=methods, grid=grid)
    assert starts.elsewhere(declared) == {"anchor": ["mr1", "late"]}

    def differ(a: str, b: str | None) -> bool:
        return starts.differ(declared, "c", Part.model_validate({**PART, "a": a, "b": b}))

    assert differ("fgrpo", "mr1") and differ("sft", "late")
    assert not differ("mr1", "late") and not differ("fgrpo", "sft") and not differ("mr1", None)


def test_a_hypothesis_that_was_added_later_is_marked_with_the_seeds_seen() -> None:
    one = lab([PART])
    declared = one.model_copy(update={"hypotheses": {"H1": one.hypotheses["H1"], "H2": one.hypotheses["H1"]}})
    first, second = (
        {"text": yaml.safe_dump({"hypotheses": dict.fromkeys(names, "x")})} for names in (["H1"], ["H1", "H2"])
    )
    seal = {**first, "deviations": [{**second, "recorded": "2026-01-01T02:00:00+00:00"}]}

    def cell(seed: int, started: str, method: str = "fgrpo") -> dict[str, Any]:
        return {"state": "done", "condition": "c", "method": method, "seed": seed, "started": started, "seconds": 600.0}

    rows = [
        cell(0, "2026-01-01T01:00:00+00:00"),
        cell(1, "2026-01-01T01:55:00+00:00"),  # ended after the change
        cell(2, "2026-01-01T03:30:00+02:00"),  # an hour and a half before it, by another clock
        cell(3, "2026-01-01T01:00:00+00:00", "sft"),  # no arm of H2
    ]
    found = additions.additions(declared, seal, rows)
    assert {name: one.seen for name, one in found.items()} == {"H2": (0, 2)}
    assert found["H2"].words() == "added after seeds 0, 2"
    assert additions.additions(declared, {**seal, "deviations": []}, rows) == {}
    assert additions.additions(declared, None, rows) == {}


@pytest.mark.parametrize(("count", "said"), [(2, "provisional: 2 of 3 seeds"), (3, "")])
def test_a_verdict_without_all_declared_seeds_is_provisional(count: int, said: str) -> None:
    """The grid declares three seeds; sft has another two of its own, which no comparison can use."""
    one = lab([PART, {**PART, "metric": "flip"}])
    more = one.grid[0].model_copy(update={"methods": ("sft",), "seeds": (3, 4)})
    declared = one.model_copy(update={"grid": (*one.grid, more)})
    assert planned.seeds(declared, "c") == {"sft": {0, 1, 2, 3, 4}, "fgrpo": {0, 1, 2}, "grpo-t": {0, 1, 2}}
    effects = {"accuracy": sure(0.1, seeds=3), "flip": sure(0.1, seeds=count)}
    (found,) = verdicts.decide(declared, lambda condition, part: effects[part.metric])
    verdict = replace(found, missing="")
    assert planned.provisional(declared, verdict) == said
    assert planned.names(declared, [verdict]) == (["H1 in c"] if said else [])
    assert planned.provisional(declared, replace(verdict, missing="cells")) == ""


def test_a_verdict_is_json() -> None:
    (verdict,) = verdicts.decide(lab([PART]), lambda condition, part: sure(0.1))
    stored = json.loads(json.dumps(verdict.to_dict()))
    assert stored["outcome"] == "supported" and stored["effects"][0]["by_seed"]["4"] == pytest.approx(0.1)
