"""What a reward is: a name and an asynchronous function from a batch of rollouts to as many scores.

A reward is one module of this folder that exposes `REWARD`; nothing has to be registered. Sections 3.2 and 3.3.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fgrpo import boxes
from fgrpo.errors import unknown
from fgrpo.images import image_size
from fgrpo.policy import backbone
from fgrpo.response import Response
from fgrpo.types import Frame, Sample, Score
from judges.base import JudgeSet

FOLDER = Path(__file__).resolve().parent
_NOT_REWARDS = {"__init__", "base", "rules"}


@dataclass(frozen=True)
class RewardItem:
    """One rollout to score: its sample and its parsed text."""

    rollout_id: str
    sample: Sample
    response: Response


@dataclass(frozen=True)
class RewardContext:
    """What rewards need besides the rollouts.

    Attributes:
        judges: who is asked.
        mask: "correct" in training: consistency and semantic grounding apply to correct answers only (Table 6,
            m_C = m_G = 1[R_acc = 1]), and nobody is asked about the others. "all" in evaluation.
        boxes_from: sources (first part of a sample's id) whose boxes spatial grounding uses; None = all that have boxes.
        box_normaliser: what the sum of CIoU is divided by (Eq. 1): "max", "gt" or "matched".
        min_pixels, max_pixels: the processor's bounds on the picture that the model sees.
        box_tag, box_frame: how the policy writes boxes (see `judges.GroundingItem`).
        patch_factor: pixels per image token side.
    """

    judges: JudgeSet
    mask: Literal["correct", "all"] = "all"
    boxes_from: tuple[str, ...] | None = None
    box_normaliser: Literal["max", "gt", "matched"] = "max"
    min_pixels: int = backbone.default().pixels.min_pixels
    max_pixels: int = backbone.default().pixels.max_pixels
    box_tag: str = "bbox"
    box_frame: Frame = "model"
    patch_factor: int = backbone.default().pixels.factor


@dataclass(frozen=True)
class Report:
    """How a reward appears in evaluation: summaries, tables, figures and the report iterate over these.

    Attributes:
        metric: the metric's key in summary.json, for example "inconsistency".
        title: its heading in tables and axes, without the arrow, for example "semantic grounding".
        higher_is_better: direction; gives the arrow, and the words "better" and "worse" in comparisons.
        inverted: the metric is 1 - score (inconsistency is the complement of consistency).
        pooled: averaged over all questions together; otherwise the mean of the benchmarks (Table 1).
        binary: each score is 0 or 1, so McNemar's test applies.
        symbol: a letter or two for the progress line of training, for example "C".
        colour: of its curve in figures, "#RRGGBB"; None: the next free one of the palette.
    """

    metric: str
    title: str
    higher_is_better: bool = True
    inverted: bool = False
    pooled: bool = False
    binary: bool = False
    symbol: str = ""
    colour: str | None = None


class Reward(Protocol):
    """A reward; `await reward(items, context)` has one score an item, in order. See `fgrpo.types.Score` for its states."""

    @property
    def name(self) -> str: ...

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]: ...


def names() -> list[str]:
    """The rewards there are."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in _NOT_REWARDS)


def load(name: str) -> Reward:
    """The `REWARD` of rewards/<name>.py.

    Raises:
        UserError: there is none (names the nearest).
    """
    if name not in names():
        raise unknown("reward", name, names())
    reward: Reward = importlib.import_module(f"rewards.{name}").REWARD
    return reward


def model_sizes(images: Sequence[str], context: RewardContext) -> tuple[tuple[int, int], ...]:
    """(width, height) of each picture as the model sees it. Raises one of `pictures.ERRORS` (a too narrow picture: ValueError)."""
    bounds = boxes.PixelBounds(context.min_pixels, context.max_pixels, context.patch_factor)
    return tuple(boxes.model_size(image_size(path), *bounds) for path in images)
