"""Spatial grounding reward R_S (Section 3.2, Eq. 1): how well the trace's boxes cover the annotated regions. Asks nobody.

R_S = sum over the optimal assignment of max(0, CIoU) / max(#predicted, #annotated). Eq. 1 lost its normaliser and does not say
what becomes of negative CIoU: dividing by the larger number makes missing and surplus boxes both cost; `normalise` "gt" or
"matched" are the other readings. No predicted box where boxes are annotated is 0, not "not applicable".
Not applicable: the sample has no boxes, or its source is not one of `boxes_from` (Table 6: VGR and TreeVGR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgrpo import pictures
from fgrpo.boxes import convert, match
from fgrpo.types import Box, Score
from rewards.base import Reward, RewardContext, RewardItem, model_sizes

if TYPE_CHECKING:
    from fgrpo.boxes import BoxLike


def score(pred: Sequence[BoxLike], gt: Sequence[BoxLike], normalise: str = "max") -> float:
    """R_S of one rollout, in [0, 1]; boxes (x1, y1, x2, y2) of one frame, `gt` not empty.

    Args:
        pred: predicted boxes; none scores 0.
        gt: annotated boxes.
        normalise: divide by "max" of both numbers, by the number of "gt" boxes, or of "matched" pairs.

    Raises:
        ValueError: `gt` is empty (nothing to score against is "not applicable"), or `normalise` is something else.
    """
    if not gt:
        raise ValueError("no annotated box: there is nothing to score against")
    pairs = match(pred, gt)
    total = sum(max(0.0, value) for _, _, value in pairs)
    divisors = {"max": max(len(pred), len(gt)), "gt": len(gt), "matched": max(1, len(pairs))}
    if normalise not in divisors:
        raise ValueError(f"normalise is one of {', '.join(divisors)}, got {normalise!r}")
    return total / divisors[normalise]


class SpatialGroundingReward:
    """R_S, with detail {"pred", "gt"} (boxes in model pixels) and {"pairs"} ([i, j, CIoU])."""

    name = "spatial_grounding"

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item, context) for item in items]


def _score(item: RewardItem, context: RewardContext) -> Score:
    sample = item.sample
    if sample.boxes is None:
        return Score.not_applicable("no boxes are annotated")
    if context.boxes_from is not None and sample.source not in context.boxes_from:
        return Score.not_applicable(f"boxes of {sample.source} are not used")
    annotated = [box for box in sample.boxes if box.is_valid]
    if not annotated:
        return Score.not_applicable(f"none of the {len(sample.boxes)} annotated boxes is valid")
    predicted = list(item.response.boxes)
    try:
        gt = _in_model_frame(annotated, item, context)
        pred = _in_model_frame(predicted, item, context)
    except pictures.ERRORS as error:
        return Score.failure(f"the picture's size cannot be read: {error}")
    return Score.of(
        score(pred, gt, context.box_normaliser),
        pred=[list(box) for box in pred],
        gt=[list(box) for box in gt],
        pairs=[list(pair) for pair in match(pred, gt)],
        dropped=item.response.dropped_boxes,
    )


def _in_model_frame(boxes: Sequence[Box], item: RewardItem, context: RewardContext) -> list[Box]:
    """`boxes` in pixels of the picture as the model sees it: the picture `meta["box_image"]` of the sample, else the first."""
    if all(box.frame == "model" for box in boxes):
        return list(boxes)
    if not item.sample.images:
        raise ValueError("the sample has no picture")
    path = item.sample.images[int(item.sample.meta.get("box_image", 0))]
    (seen,) = model_sizes([path], context)
    return [convert(box, "model", pictures.size(path), seen) for box in boxes]


REWARD: Reward = SpatialGroundingReward()
