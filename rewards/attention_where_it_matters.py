"""Attention where it matters: whether tokens that depend on the image attend to the annotated region (MR1-style).

Score = Σ s_t e_t / Σ s_t, in [0, 1]. e_t is the share of token t's attention on the image that lies in the annotated boxes, over
heads and the chosen layers; s_t is how much its probability depends on them (`rewards/probes.py`, the boxes blanked). So tokens
that do not depend on the evidence do not count. Source: the abstract of Faithful-MR1 (arXiv 2605.22072) rewards answer-correct
trajectories "that concentrate attention where vision matters causally"; the formula is ours. No judge is used.
Not applicable, each cause counted: the answer is wrong (in training), no boxes, a response that hardly depends on them
(Σ s_t < `rl.probes.least_dependence`), nothing measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.probes import NOT_MEASURED, WRONG, Absent, dependence, no_score
from rewards.task import is_correct

BLIND = Absent("blind", "the response hardly depends on the annotated region")


class AttentionReward:
    """The weighted share, with detail: "unweighted", the plain mean of e_t, and "dependence", Σ s_t in nats."""

    name = "attention_where_it_matters"
    report: Report | None = None
    needs = ("evidence", "attention")

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item, context) for item in items]


def _score(item: RewardItem, context: RewardContext) -> Score:
    probes = item.probes
    if probes is None or probes.evidence is None or probes.attention is None:
        return no_score(NOT_MEASURED)
    if context.mask == "correct" and not is_correct(item):
        return no_score(WRONG)
    for part in (probes.evidence, probes.attention):
        if isinstance(part, Absent):
            return no_score(part)
    assert isinstance(probes.evidence, tuple) and isinstance(probes.attention, tuple)
    weights = dependence(probes.evidence)
    total = sum(weights)
    if total < context.probing.least_dependence or total <= 0:
        return no_score(BLIND)
    value = sum(s * e for s, e in zip(weights, probes.attention, strict=True)) / total
    plain = sum(probes.attention) / len(probes.attention)
    return Score.of(value, unweighted=plain, dependence=total, monitor={"unweighted": plain, "dependence": total})


REWARD: Reward = AttentionReward()
