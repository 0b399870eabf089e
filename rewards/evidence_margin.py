"""Evidence margin: how much more a response depends on the annotated region than on other regions of its shape (MR1-style).

Score = σ((Δ_ev - mean_c Δ_c) / scale), where Δ is the mean drop of the response's log-probabilities when a region is blanked: the
annotated boxes (Δ_ev), or a control region of the same cells elsewhere (Δ_c). With `rl.probes.scope: answer` it is the mean over
the answer's tokens alone, which an answer that follows its trace hardly moves (docs/probes.md). 0.5: the boxes matter no more
than the controls. Near 1: without the boxes the policy would not have written this. Source: the abstract of Faithful-MR1
(arXiv 2605.22072: counterfactual image intervention) and Evidence-RL (arXiv 2608.08021), whose margin divides by the deviation of three controls
and is then ±1 nearly always; here the scale is fixed. No judge is used.
Not applicable, each cause counted: the answer is wrong (in training), no boxes, no control region that fits, nothing measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.probes import NO_TOKENS, NOT_MEASURED, WRONG, Absent, Drops, margin, mean_drop, no_score
from rewards.task import is_correct


class EvidenceMarginReward:
    """The margin, with detail: "evidence" and "controls", the mean drops in nats, and "monitor", both as means of a rollout."""

    name = "evidence_margin"
    report: Report | None = None
    needs = ("evidence", "controls")

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item, context) for item in items]


def _score(item: RewardItem, context: RewardContext) -> Score:
    found = mean_drops(item, context)
    if isinstance(found, Absent):
        return no_score(found)
    evidence, controls = found
    value = margin(evidence, controls, context.probing.margin_scale)
    drops = {"evidence_drop": evidence, "control_drop": sum(controls) / len(controls)}
    return Score.of(value, evidence=evidence, controls=controls, monitor=drops)


def mean_drops(item: RewardItem, context: RewardContext) -> tuple[float, list[float]] | Absent:
    """Mean drops over the tokens of `context.probing.scope`: with the boxes blanked, and for each control."""
    probes = item.probes
    if probes is None or probes.evidence is None or probes.controls is None:
        return NOT_MEASURED
    if context.mask == "correct" and not is_correct(item):
        return WRONG
    evidence, controls, tokens = probes.evidence, probes.controls, None
    if isinstance(evidence, Absent):
        return evidence
    if isinstance(controls, Absent):
        return controls
    if context.probing.scope == "answer":
        if not isinstance(probes.answer, tuple):
            return probes.answer or NO_TOKENS
        tokens = probes.answer
    try:
        return mean_drop(evidence, tokens), [mean_drop(one, tokens) for one in _all(controls)]
    except ValueError:
        return NO_TOKENS


def _all(controls: tuple[Drops, ...]) -> tuple[Drops, ...]:
    if not controls:
        raise ValueError("controls without a region are Absent")
    return controls


REWARD: Reward = EvidenceMarginReward()
