"""GRPO-CARE's consistency bonus (arXiv 2506.16141): a correct answer that the reference model finds likely after its trace.

    R_i = 1/2 if p_i >= mean of p over the group's correct answers − MARGIN, else 0        for a correct answer
    p_i = min(0.95, exp(mean log-probability of the answer's tokens under the reference model))

A wrong answer has no score, which adds nothing to the task reward (`rl.combine: additive`). The condition of the original that an
accuracy reaches its group's mean holds for each correct answer, since ours is 0 or 1. A p that could not be measured is a failed
score, and enters no mean.

Differs from GRPO-CARE: its reference follows the policy (average of 0.995, every 10 steps), ours is that of the KL penalty, which
stays fixed unless `rl.reference` moves it; so `rl.kl_coef` must be above 0, where the original has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem, by_group
from rewards.probes import NOT_MEASURED, WRONG, Absent, no_score
from rewards.task import is_correct

BONUS, MARGIN, HIGHEST = 0.5, 0.01, 0.95
_ROUND_OFF = 1e-12  # of a mean of equal numbers


class GrpoCareReward:
    """The bonus, with detail {"likelihood", "of_group"} and "monitor": {"likelihood"}."""

    name = "grpo_care"
    report: Report | None = None  # a bonus against the other rollouts of a group
    needs = ("answer_likelihood",)
    needs_group = True

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores: dict[int, Score] = {}
        for places in by_group(items).values():
            found = {place: _likelihood(items[place]) for place in places if is_correct(items[place])}
            known = [p for p in found.values() if not isinstance(p, Absent)]
            mean = math.fsum(known) / len(known) if known else math.nan
            for place, p in found.items():
                scores[place] = no_score(p) if isinstance(p, Absent) else _score(p, mean)
        return [scores.get(place) or no_score(WRONG) for place in range(len(items))]


def _likelihood(item: RewardItem) -> float | Absent:
    found = NOT_MEASURED if item.probes is None else item.probes.answer_likelihood
    if found is None or isinstance(found, Absent):
        return found or NOT_MEASURED
    return min(HIGHEST, math.exp(found))


def _score(p: float, mean: float) -> Score:
    value = BONUS if p >= mean - MARGIN - _ROUND_OFF else 0.0
    return Score.of(value, likelihood=p, of_group=mean, monitor={"likelihood": p})


REWARD: Reward = GrpoCareReward()
