"""Control margin, a monitor: the evidence margin of a random region in place of the boxes (MR1-style).

Score = σ((Δ_1 - mean of the other Δ_c) / scale) over the control regions of `rewards/evidence_margin.py`. It must stay near 0.5.
Where it rises together with the evidence margin, the policy has become sensitive to any change of the image, not to the boxes.
Applies where the evidence margin does, given two controls.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.evidence_margin import mean_drops
from rewards.probes import Absent, margin, no_score

ONE_CONTROL = Absent("one_control", "a control margin needs two control regions (rl.probes.controls)")


class ControlMarginReward:
    """The margin of the first control against the others. `least_controls`: what rl.probes.controls must be (`rl.probes.checks`)."""

    name = "control_margin"
    report: Report | None = None
    needs = ("evidence", "controls")
    least_controls = 2

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item, context) for item in items]


def _score(item: RewardItem, context: RewardContext) -> Score:
    found = mean_drops(item, context)
    if isinstance(found, Absent):
        return no_score(found)
    first, *others = found[1]
    if not others:
        return no_score(ONE_CONTROL)
    return Score.of(margin(first, others, context.probing.margin_scale))


REWARD: Reward = ControlMarginReward()
