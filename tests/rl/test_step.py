"""One step as a pure function: every field against a batch worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fgrpo.response import parse
from fgrpo.types import Sample, Score
from rewards.base import RewardItem
from rl.advantage import combine, couple
from rl.dual import Constraint, DualAscent
from rl.scored_batch import ScoreColumn, ScoredBatch, batch_metrics, gather
from rl.step import StepOptions, fgrpo_step

NAN = math.nan
SCORES = torch.tensor([[2.0, 1.0], [0.0, NAN], [1.0, NAN], [1.0, 0.0]])  # two groups of two
FAILED = torch.tensor([[False, False], [False, True], [False, False], [False, False]])


def dual() -> DualAscent:
    return DualAscent([Constraint("c", tau=0.9, lam_init=2.0, lr=0.5, min_applicable=2)])


def test_every_field_by_hand() -> None:
    """Mean of c 1/2, so λ goes from 2 to 2 + 0.5 x (0.9 - 0.5) = 2.2, which is logged with the next batch."""
    before = dual()
    step = fgrpo_step(SCORES, FAILED, before, StepOptions(group_size=2))
    assert step.weights_K.tolist() == [1.0, 2.0]  # λ_t
    assert torch.equal(step.advantages_N, combine(SCORES, torch.tensor([1.0, 2.0]), 2))
    (move,) = step.dual_steps
    assert (move.lam_before, move.lam, move.applicable) == (2.0, pytest.approx(2.2), 2)
    assert step.dual_state["states"]["c"]["lam"] == pytest.approx(2.2)
    assert before.state_dict() == dual().state_dict(), "the multipliers that were passed in stay as they are"
    assert step.metrics == {
        "reward": pytest.approx((4 + 0 + 1 + 1) / 4), "reward_std": pytest.approx(3**0.5),
        "task/mean": 1.0, "task/share": 1.0,  # c varies in no group: each has one known score at most
        "constraint/c/mean": 0.5, "constraint/c/n": 2, "constraint/c/mixed_share": 0, "constraint/c/failed": 1,
        "constraint/c/share": 0, "lambda/c": 2.0, "constraint/c/violation": pytest.approx(0.4),
        "constraint/c/moved": 1, "constraint/c/saturated": 0, "constraint/c/at_bound": 0, "constraint/c/steps_to_bound": 14,  # 2.8 / 0.2
    }  # fmt: skip


def test_coupled_columns_have_no_multipliers() -> None:
    options = StepOptions(group_size=2, coupling="additive", names=("task", "c"))
    step = fgrpo_step(SCORES, FAILED, DualAscent([]), options)
    reward = couple(SCORES, "additive", FAILED)
    assert torch.equal(step.advantages_N, combine(reward, torch.ones(1), 2))
    assert step.weights_K.tolist() == [1.0, 1.0] and step.dual_steps == ()
    assert step.metrics["reward"] == pytest.approx((3 + 1 + 1) / 3)  # row 1 has failed
    assert not [
        key for key in step.metrics if key.startswith("lambda/") or (key.endswith("share") and "mixed" not in key)
    ]


@pytest.mark.parametrize(
    "option", [{"masked": "zero"}, {"baseline": "batch"}, {"whiten": "none"}, {"whiten": "token"}], ids=str
)
def test_options_reach_the_advantages(option: dict[str, Any]) -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, NAN], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    failed = torch.isnan(scores)
    lengths = torch.tensor([1, 2, 3, 4, 5, 6])
    step = fgrpo_step(scores, failed, dual(), StepOptions(group_size=2, **option), lengths_N=lengths)
    expected = combine(scores, torch.tensor([1.0, 2.0]), 2, lengths_N=lengths, failed_NK=failed, **option)
    assert torch.equal(step.advantages_N, expected)


def test_evaluation_moves_nothing_and_allows_groups_of_one() -> None:
    """Its reward is the task's, whose scores are 2, 0, 1 and 1: λ = 2 has no part in it."""
    step = fgrpo_step(SCORES, None, dual(), StepOptions(group_size=1, training=False))
    assert step.advantages_N.tolist() == [0.0] * 4
    assert step.dual_state == dual().state_dict() and step.dual_steps == ()
    assert step.metrics == {
        "reward": 1.0, "reward_std": pytest.approx((2 / 3) ** 0.5),
        "task/mean": 1.0, "constraint/c/mean": 0.5, "constraint/c/n": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "failures", "words"),
    [
        (torch.ones(4, 3), None, r"the columns are \['task', 'c'\]"),
        (torch.ones(4, 2), torch.zeros(4, 1, dtype=torch.bool), "failures of shape"),
        (torch.ones(3, 2), None, "do not divide"),
    ],
)
def test_wrong_shapes_are_named(scores: torch.Tensor, failures: torch.Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fgrpo_step(scores, failures, dual(), StepOptions(group_size=2))


def scored(texts: list[str], rank: int = 0, **scores: list[Score]) -> ScoredBatch:
    sample = Sample("s", (), "Left or right?", ("left", "right"), "left")
    items = tuple(RewardItem(f"{rank}/{n}", sample, parse(text)) for n, text in enumerate(texts))
    columns = {name: tuple(column) for name, column in scores.items()}
    return ScoredBatch(0, items, tuple(texts), (1,) * len(texts), columns, ("spatial_grounding",))


def test_figures_of_the_rollouts_are_over_all_processes() -> None:
    """Two processes: accuracy 2 of 3, format 1 of 3, consistency 1 of 2 (inconsistency is its complement), one failure."""
    one = scored(
        ["<think><bbox>[1,2]</bbox></think>", "b"],
        task=[Score.of(2, format=1, accuracy=1), Score.of(1, format=0, accuracy=1)],
        consistency=[Score.of(1.0), Score.of(0.0)],
        spatial_grounding=[Score.of(0.25), Score.not_applicable("no boxes")],
    )
    two = scored(
        ["c"], 1,
        task=[Score.of(0, format=0, accuracy=0)],
        consistency=[Score.failure("timeout")],
        spatial_grounding=[Score.of(0.75)],
    )  # fmt: skip
    assert batch_metrics([one, two]) == {
        "accuracy": pytest.approx(2 / 3), "format": pytest.approx(1 / 3), "inconsistency": 0.5, "failed": 1,
        "boxes_dropped": 1, "imitates_verdict": 0, "monitor/spatial_grounding/mean": 0.5, "monitor/spatial_grounding/n": 2,
    }  # fmt: skip
    assert batch_metrics([]) == {}


def test_columns_travel_with_their_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reward functions return is gathered in the order of TRL's rows; plain lists have no failures."""
    batch = scored(["a", "b"], task=[], consistency=[])
    returned = {
        "task": ScoreColumn.of([Score.of(1.0), Score.not_applicable("none")], batch),
        "one": ScoreColumn.of([Score.failure("timeout"), Score.failure("")], batch),
        "two": [0.5, None],
    }
    other = ((((None, "gone", None),)), None)
    monkeypatch.setattr("rl.scored_batch.gather_object", lambda local: [*local, other])
    gathered = gather(torch.full((3, 3), NAN), returned, ["task", "one", "two"], 2)
    assert gathered.reasons_NK == (
        (None, "timeout", None),
        (None, "no reason given", None),
        (None, "gone", None),
    )
    assert gathered.failed_NK.tolist() == [[False, True, False]] * 3
    assert gathered.batches == (batch,)
