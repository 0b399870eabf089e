"""Evidence-RL's task reward, Answer-CED (arXiv 2608.08021): correctness, gated by how much the answer needs the evidence.

    R = R_format + c · g + 0.10 m        c = +1 correct, −0.25 wrong        g = (1 + tanh(m / 0.20)) / 2
    m = tanh((Δ_ev − mean Δ_ctrl) / (deviation of the Δ_ctrl + 1e-6))

Δ is the mean drop of the answer's log-probabilities where a region is blanked: the annotated boxes, or one of the controls of the
same shape elsewhere (`rl.probes`). The deviation is that of the population. Where there is no such number (no boxes, no control
that fits, no answer), only correctness counts: R = R_format + c. So it is where the controls do not differ, which are then no
measure of spread: controls are drawn independently, so on a small grid those of a question may be the same cells, and a single
one may fit. A measurement that failed is a failed score.

Differs from Evidence-RL: it replaces features at the first layer of the language model by their surroundings' mean, we blank
pixels; it leaves evidence out for yes/no questions, we wherever there are no boxes; a format reward. With three controls m is near
−1 or 1 nearly always, so that a small difference already decides; its archived code has the plain difference instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.evidence_margin import mean_drops
from rewards.probes import Absent, no_score
from rewards.task import is_correct

RIGHT, WRONG = 1.0, -0.25  # c
SHARPNESS, SHARE, EPS = 0.20, 0.10, 1e-6
ROUND_OFF = 1e-5  # nats: control regions of the same cells may differ by this much
EQUAL = Absent("equal_controls", "the drops of the control regions do not differ, so the margin has no unit")


class CedReward:
    """R, with detail {"format", "accuracy"} and, where the evidence counts, "margin" and "monitor": {"gate", "margin"}.

    `least_controls`: what rl.probes.controls must be (`rl.probes.checks`); one control has no deviation.
    """

    name = "ced"
    report: Report | None = None  # evaluation reports accuracy and format
    needs = ("evidence", "controls")
    least_controls = 2

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        of_answer = context.probing.model_copy(update={"scope": "answer"})
        of_all = dataclasses.replace(context, mask="all", probing=of_answer)  # a wrong answer has a margin too
        return [_score(item, of_all) for item in items]


def margin(evidence: float, controls: Sequence[float]) -> float:
    """m of one rollout from its mean drops, of which those of the controls differ."""
    mean = sum(controls) / len(controls)
    deviation = math.sqrt(sum((drop - mean) ** 2 for drop in controls) / len(controls))
    return math.tanh((evidence - mean) / (deviation + EPS))


def gate(m: float) -> float:
    """g, in [0, 1]."""
    return (1 + math.tanh(m / SHARPNESS)) / 2


def _score(item: RewardItem, context: RewardContext) -> Score:
    form, accuracy = int(item.response.well_formed), int(is_correct(item))
    c = RIGHT if accuracy else WRONG
    found = mean_drops(item, context)
    if not isinstance(found, Absent) and max(found[1]) - min(found[1]) <= ROUND_OFF:
        found = EQUAL
    if isinstance(found, Absent):
        if found.failed:
            return no_score(found)
        return Score.of(form + c, found.reason, format=form, accuracy=accuracy, cause=found.cause)
    m = margin(*found)
    value = form + c * gate(m) + SHARE * m
    return Score.of(value, format=form, accuracy=accuracy, margin=m, monitor={"gate": gate(m), "margin": m})


REWARD: Reward = CedReward()
