"""Spatial grounding reward R_S (Section 3.2, Eq. 1): how well the trace's boxes cover the annotated regions. Asks nobody.

R_S = sum over the optimal assignment of max(0, CIoU) / max(#predicted, #annotated). Eq. 1 lost its normaliser and does not say
what becomes of negative CIoU: dividing by the larger number makes missing and surplus boxes both cost; `normalise` "gt" or
"matched" are the other readings. No predicted box where boxes are annotated is 0, not "not applicable".
Not applicable: the sample has no boxes, or its source is not one of `boxes_from` (Table 6: VGR and TreeVGR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgrpo.boxes import Size, convert, match
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.types import Box, Score
from rewards.base import Report, Reward, RewardContext, RewardItem, model_sizes

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
    """R_S, with detail {"pred", "gt"} (boxes in model pixels), {"pairs"} ([i, j, CIoU]), and what was counted: {"dropped"}
    (opened boxes that are none), {"outside"} (predicted boxes that leave the picture; None if its size is not known; many of
    them mean that the frame is wrong), {"gt_dropped"} (annotated boxes that are no boxes or lie beyond the picture)."""

    name = "spatial_grounding"
    report = Report("spatial_grounding", "spatial grounding", symbol="S", colour="#CC79A7")

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        return [_score(item, context) for item in items]


def _score(item: RewardItem, context: RewardContext) -> Score:
    sample = item.sample
    if sample.boxes is None:
        return Score.not_applicable("no boxes are annotated")
    if context.boxes_from is not None and sample.source not in context.boxes_from:
        return Score.not_applicable(f"boxes of {sample.source} are not used")
    try:
        annotated = [_annotated(box, i, item, context) for i, box in enumerate(sample.boxes)]
        gt = [box for box in annotated if box is not None]
        if not gt:
            return Score.not_applicable(f"none of the {len(sample.boxes)} annotated boxes is valid")
        converted = [_in_model_frame(box, 0, item, context) for box in item.response.boxes]
        pred = [box for box in converted if box.is_valid]  # numbers near a float's limits leave it when converted
        outside = _count_outside(pred, item, context)
    except IMAGE_ERRORS as error:
        return Score.failure(f"the picture's size cannot be read: {error}")
    return Score.of(
        score(pred, gt, context.box_normaliser),
        pred=[list(box) for box in pred],
        gt=[list(box) for box in gt],
        pairs=[list(pair) for pair in match(pred, gt)],
        dropped=item.response.dropped_boxes + len(converted) - len(pred),
        outside=outside,
        gt_dropped=len(sample.boxes) - len(gt),
    )


def _annotated(box: Box, place: int, item: RewardItem, context: RewardContext) -> Box | None:
    """An annotated box in model pixels; None if it is no box, or no part of it lies in its picture."""
    if not box.is_valid:
        return None
    found = _in_model_frame(box, place, item, context)
    if not found.is_valid:
        return None
    if box.frame == "model":
        return found
    width, height = _seen(place, item, context)[1]
    return found if found.x1 < width and found.y1 < height and found.x2 > 0 and found.y2 > 0 else None


def _in_model_frame(box: Box, place: int, item: RewardItem, context: RewardContext) -> Box:
    """`box` in pixels of its picture as the model sees it."""
    if box.frame == "model":
        return box
    original, seen = _seen(place, item, context)
    return convert(box, "model", original, seen)


def _seen(place: int, item: RewardItem, context: RewardContext) -> tuple[Size, Size]:
    """Sizes (file, model) of the picture that annotated box `place` lies in: the sample's meta["box_images"][place] where
    boxes lie in several, else meta["box_image"], else the first. Predicted boxes do not say: they count as place 0."""
    meta, images = item.sample.meta, item.sample.images
    homes = meta.get("box_images")
    index = int(homes[place] if homes and place < len(homes) else meta.get("box_image", 0))
    if not 0 <= index < len(images):
        raise ValueError(f"sample {item.sample.id} has a box in picture {index}, and {len(images)} pictures")
    (seen,) = model_sizes([images[index]], context)
    return image_size(images[index]), seen


def _count_outside(pred: Sequence[Box], item: RewardItem, context: RewardContext) -> int | None:
    """How many predicted boxes leave every picture of the sample by more than a pixel; None if a size cannot be read."""
    if not pred or not item.sample.images:
        return 0 if not pred else None
    try:
        sizes = model_sizes(item.sample.images, context)
    except IMAGE_ERRORS:
        return None  # model pixels can be scored without the picture
    width, height = max(w for w, _ in sizes) + 1, max(h for _, h in sizes) + 1
    return sum(box.x1 < -1 or box.y1 < -1 or box.x2 > width or box.y2 > height for box in pred)


REWARD: Reward = SpatialGroundingReward()
