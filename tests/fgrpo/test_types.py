"""JSON round trips and the three states of a score."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fgrpo.types import Box, EvalRecord, Rollout, Sample, Score, Trace, Verdict

ITEMS: list[Any] = [
    Box(1, 2.5, 3, 4, "unit"),
    Sample(
        "sat/train/1", ("a.png", "b.png"), "Is it «left»?", ("left", "right"), "left", (Box(0, 0, 4, 4),), {"k": [1]}
    ),
    Sample("sat/train/2", (), "?", (), "free", None),
    Trace("t", "sat/train/1", "corrected", "<think>x</think><answer>y</answer>", {"depth": 2}),
    Rollout("r", "sat/train/1", "text", "length", 7),
    Score.of(0.5, "why", sentences=["CORRECT"]),
    Score.not_applicable("no boxes"),
    Score.failure("time-out"),
    Verdict("CONSISTENT", "r", False, "oracle", "abc"),
    EvalRecord("e", "mmvp", "m", "s", {"accuracy": Score.of(1), "spatial": Score.not_applicable("none")}, {"pair": 3}),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_json_round_trip(item: Any) -> None:
    assert type(item).from_dict(json.loads(json.dumps(item.to_dict()))) == item


def test_a_score_has_three_states_and_none_is_not_zero() -> None:
    assert [s.state for s in (Score.of(0), Score.not_applicable("x"), Score.failure("y"))] == [
        "scored",
        "not_applicable",
        "failed",
    ]
    assert Score.not_applicable("x").value is None and Score.failure("y").value is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Score.of(value)


def test_a_failed_score_cannot_carry_a_value() -> None:
    with pytest.raises(ValueError, match="no value"):
        Score(0.0, "x", failed=True)


def test_box_unpacks_and_knows_when_it_is_no_box() -> None:
    x1, _, _, y2 = Box(1, 2, 3, 4)
    assert (x1, y2, Box(1, 2, 3, 4)[2], len(Box(1, 2, 3, 4))) == (1, 4, 3, 4)
    assert Box(0, 0, 1, 1).is_valid
    assert not any(b.is_valid for b in (Box(1, 0, 1, 1), Box(2, 0, 1, 1), Box(0, 0, float("nan"), 1)))
