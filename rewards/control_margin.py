"""Control margin, a monitor: the evidence margin of a random region in place of the boxes (MR1-style).

Score = σ((Δ_1 - mean of the other Δ_c) / scale) over the control regions of `rewards/evidence_margin.py`. It checks the measurement
and not the policy: controls are drawn alike, so with two of them its mean is 0.5 for every policy. Another mean, beyond noise, is a
fault; its spread around 0.5 is what a margin shows of a region that means nothing. It cannot show a policy that is sensitive to any
change of the image, whose drops all grow together; the controls' mean drop can (`monitor/evidence_margin/control_drop`).
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
