"""FAPO's task reward (arXiv 2510.22543): a correct answer whose trace is flawed is worth 0 instead of 1.

    R = R_format + r        r = +1: correct;  0: correct, and a judge finds a flaw in the trace;  −1: wrong

A flaw, by our own judges: the trace does not entail the answer (R_C = 0), or one of its sentences about the image is false
(R_G < 1), or, unless `rl.unscorable` is "not_applicable", it claims nothing about the image. Judges are asked about correct
answers only. If no flaw is found and a judge failed, the score is failed: it may be 0 or 1.

Differs from FAPO: its flaws are those of a trained GenRM (FAPO-GenRM-4B), which reads text, sees the gold answer and names the
first wrong step; it has no format reward; the group is normalised by `rl.advantage.combine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fgrpo.types import Score
from judges.task import JudgeTask
from rewards import consistency, semantic_grounding
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.task import is_correct

CORRECT, FLAWED, WRONG = 1.0, 0.0, -1.0


class FapoReward:
    """R, with detail {"format", "accuracy"} and, for a correct answer, "monitor": {"flawed": 0 or 1}."""

    name = "fapo"
    report: Report | None = None  # evaluation reports accuracy, format and both rewards that find flaws
    judge_task: JudgeTask[Any] | None = semantic_grounding.GROUNDING_TASK  # and that of consistency

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        right = [item for item in items if is_correct(item)]
        follows, holds = await asyncio.gather(
            consistency.REWARD(right, context), semantic_grounding.REWARD(right, context)
        )
        of_right = iter(zip(follows, holds, strict=True))
        return [_score(item, *next(of_right)) if is_correct(item) else _wrong(item) for item in items]


def _wrong(item: RewardItem) -> Score:
    form = int(item.response.well_formed)
    return Score.of(form + WRONG, "the answer is wrong", format=form, accuracy=0)


def _score(item: RewardItem, follows: Score, holds: Score) -> Score:
    """The score of a correct answer from its consistency and its semantic grounding."""
    form = int(item.response.well_formed)
    flaws = [
        *(["the trace does not entail the answer"] if follows.value is not None and follows.value < 1 else []),
        *(
            [holds.reason or "a sentence about the image is false"]
            if holds.value is not None and holds.value < 1
            else []
        ),
    ]
    failed = next((score for score in (follows, holds) if score.failed), None)
    if failed is not None and not flaws:
        return Score.failure(failed.reason)
    value = FLAWED if flaws else CORRECT
    return Score.of(form + value, "; ".join(flaws), format=form, accuracy=1, monitor={"flawed": float(bool(flaws))})


REWARD: Reward = FapoReward()
