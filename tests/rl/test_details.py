"""What scores carry beside their value reaches the metrics and the alarms, and a monitored reward keeps the paper's states."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fgrpo.boxes import PixelBounds
from fgrpo.config import load
from fgrpo.response import parse
from fgrpo.types import Sample, Verdict
from judges import JudgeSet, JudgeTask
from rewards.base import RewardContext, RewardItem
from rl.alarms import Alarms
from rl.dual import Constraint
from rl.scored_batch import ScoredBatch, batch_metrics
from rl.scoring import RolloutScorer
from rl.train import make_scorer

SAMPLE = Sample("sat/train/0", ("missing.png",), "Is the car left or right?", ("left", "right"), "left")
PIXELS = PixelBounds(3136, 12845056, 28)
TEXTS = (
    "<think>Let me think.</think><answer>left</answer>",
    "<think>The car is on the left.\nThe car is on the left.</think><answer>left</answer>",
    "<think>The car stands left there.\nThere stands the car left.\nThe bus is red.</think><answer>left</answer>",
    "<think>The car is on the left.</think><answer>right</answer>",
)


class Accepting:
    async def answer(self, task: JudgeTask[Any], items: Sequence[Any]) -> list[tuple[Verdict, ...]]:
        label = "CORRECT" if task.name == "grounding" else "CONSISTENT"
        return [(Verdict(label),) * task.size(item) for item in items]


def batch(constraints: Sequence[str], monitor: Sequence[str] = ()) -> ScoredBatch:
    context = RewardContext(JudgeSet(Accepting()), mask="correct", unscorable="zero")
    scorer = RolloutScorer(constraints, context, monitor)
    items = tuple(RewardItem(f"r{n}", SAMPLE, parse(text)) for n, text in enumerate(TEXTS))
    return asyncio.run(scorer._score(0, items, TEXTS, (9,) * len(TEXTS)))


def test_causes_counts_and_dilution_are_logged() -> None:
    metrics = batch_metrics([batch(["consistency", "semantic_grounding"])])
    assert {key: value for key, value in metrics.items() if key.startswith(("cause/", "count/"))} == {
        "cause/consistency/no_trace": 1.0,
        "cause/semantic_grounding/no_claim": 1.0,
        "count/semantic_grounding/repeated": 1.0,
    }
    assert metrics["monitor/semantic_grounding/dilution"] == ((1 / 2 - 1) + (1 - 1)) / 2


def test_under_its_constraint_an_empty_trace_is_zero_and_as_a_monitor_not_applicable() -> None:
    constrained = batch(["semantic_grounding"])
    assert [s.value for s in constrained.scores["semantic_grounding"]] == [0.0, 0.5, 1.0, None]
    monitored = batch(["consistency"], ["semantic_grounding"])
    assert [s.value for s in monitored.scores["semantic_grounding"]] == [None, 0.5, 1.0, None]


def test_the_options_reach_the_rewards() -> None:
    for option, value in (("unscorable", "not_applicable"), ("grounding_mean", "claims")):
        default = make_scorer(load("mini", "fgrpo"), PIXELS)._context
        changed = make_scorer(load("mini", "fgrpo", [f"rl.{option}={value}"]), PIXELS)._context
        assert getattr(default, option) != value and getattr(changed, option) == value


def test_dilution_raises_an_alarm_when_it_stays() -> None:
    alarms = Alarms([Constraint("semantic_grounding", 0.95)])
    line = {"constraint/semantic_grounding/mixed_share": 0.5, "monitor/semantic_grounding/dilution": 0.2}
    raised = [alarms.of(line) for _ in range(Alarms.EVERY)]
    assert raised[:-1] == [[]] * (Alarms.EVERY - 1) and "0.20 above the mean over distinct claims" in raised[-1][0]
    unscored = {"constraint/semantic_grounding/mixed_share": 0.5}
    assert alarms.of(unscored) == [], "no score says nothing about dilution"
    assert not any(alarms.of(line) for _ in range(Alarms.EVERY - 1)) and alarms.of(unscored) == []
    assert len(alarms.of(line)) == 1, "and does not begin the count again"
    assert alarms.of({**line, "monitor/semantic_grounding/dilution": 0.01}) == []
    assert not any(alarms.of(line) for _ in range(Alarms.EVERY - 1)), "the count begins again"
