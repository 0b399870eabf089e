"""Vision dependence, a monitor: how much a response depends on the image at all (after VPPO, arXiv 2510.09285).

Score = mean over the response's tokens of s_t (`rewards/probes.py`), in [0, 10] nats, between the image and the same image with
random cells blanked (`rl.probes.patch_share` of them). It needs no boxes and no judge, and applies to right and wrong answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.probes import NO_TOKENS, NOT_MEASURED, Absent, dependence, no_score


class VisionDependenceReward:
    """The mean dependence of a response's tokens."""

    name = "vision_dependence"
    report: Report | None = None
    needs = ("patches",)

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item) for item in items]


def _score(item: RewardItem) -> Score:
    found = item.probes.patches if item.probes is not None else None
    if found is None or isinstance(found, Absent):
        return no_score(found or NOT_MEASURED)
    if not found:
        return no_score(NO_TOKENS)
    return Score.of(sum(dependence(found)) / len(found))


REWARD: Reward = VisionDependenceReward()
