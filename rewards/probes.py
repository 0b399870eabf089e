"""Numbers measured on the policy for one rollout (`rl/probes`), and what rewards make of them (MR1-style, docs/probes.md).

A reward names what it needs in `needs`: "evidence", "controls", "patches" (drops of log-probability under a changed image),
"attention" or "answer_likelihood". Nothing else is measured. It reads the numbers in `RewardItem.probes`.

The drop of token t is δ_t = clip(log p(y_t | image) - log p(y_t | changed image), ±20), in nats. Its dependence on the image is
s_t = clip(e^(-δ_t) + δ_t - 1, 0, 10), the k3 estimate of a token's KL divergence (Schulman 2020; VPPO, arXiv 2510.09285, uses
the same two bounds). Faithful-MR1's own formulas are not public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo.types import Score

LARGEST_DROP = 20.0  # nats
LARGEST_DEPENDENCE = 10.0  # nats

# Rewards that read passes of the policy alone, so that they can be measured on any stored answer (`ops.policy_probes`).
MEASURED = ("evidence_margin", "control_margin", "attention_where_it_matters", "vision_dependence")

Drops = tuple[float, ...]  # one per token of the completion


@dataclass(frozen=True)
class Absent:
    """Why a rollout has no such number: it is not applicable, or measuring it failed.

    Attributes:
        cause: a key that is counted (`cause/<reward>/<cause>` in metrics.jsonl).
    """

    cause: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Probes:
    """What was measured for one rollout; None where no reward asked for it.

    Attributes:
        answer: tokens [first, last) of the completion that wrote the answer.
        evidence: drop of each token where the annotated boxes are blanked.
        controls: the same for each of several regions of that shape elsewhere.
        patches: the same for random cells.
        attention: for each token the share of its attention on the image that lies in the annotated boxes.
        answer_likelihood: mean log-probability of the answer's tokens under the reference model, in nats.
    """

    answer: tuple[int, int] | Absent | None = None
    evidence: Drops | Absent | None = None
    controls: tuple[Drops, ...] | Absent | None = None
    patches: Drops | Absent | None = None
    attention: tuple[float, ...] | Absent | None = None
    answer_likelihood: float | Absent | None = None


NOT_MEASURED = Absent("not_measured", "nothing was measured: the reward reads a local policy")
NO_TOKENS = Absent("no_tokens", "there is no token to average over")
WRONG = Absent("wrong_answer", "the answer is not correct")


def no_score(absent: Absent) -> Score:
    """The score of a rollout without a number."""
    if absent.failed:
        return Score(None, absent.reason, True)
    return Score(None, absent.reason, False, {"cause": absent.cause})


def dependence(drops: Sequence[float]) -> list[float]:
    """s of each token."""
    return [min(LARGEST_DEPENDENCE, max(0.0, math.exp(-d) + d - 1.0)) for d in drops]


def mean_drop(drops: Sequence[float], tokens: tuple[int, int] | None) -> float:
    """Mean δ over the tokens [first, last), or over all.

    Raises:
        ValueError: there is none.
    """
    chosen = drops if tokens is None else drops[slice(*tokens)]
    if not chosen:
        raise ValueError("the mean of no token")
    return sum(chosen) / len(chosen)


def margin(drop_here: float, drops_elsewhere: Sequence[float], scale: float) -> float:
    """σ((Δ - mean of the others) / scale), in [0, 1]: 0.5 where this region matters as much as the others.

    Args:
        scale: in nats.
    """
    return sigmoid((drop_here - sum(drops_elsewhere) / len(drops_elsewhere)) / scale)


def sigmoid(x: float) -> float:
    """1 / (1 + e^(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
