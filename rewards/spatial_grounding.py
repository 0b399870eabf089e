"""Spatial grounding reward R_S (Section 3.2, Eq. 1): how well the trace's boxes cover the annotated regions. No judge is used.

R_S = sum over the optimal assignment of max(0, CIoU) / max(#predicted, #annotated). Eq. 1 lost its normaliser and does not say
how to treat negative CIoU. Dividing by the larger number penalizes both missing and surplus boxes; `normalise` "gt" and
"matched" are the other readings. No predicted box where boxes are annotated is 0, not "not applicable".
Not applicable: the reply shows no trace (in evaluation, `needs_trace`), the sample has no boxes, or its source is not one of
`boxes_from` (Table 6: VGR and TreeVGR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgrpo import box_forms
from fgrpo.boxes import Size, convert, match
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.response import every_box
from fgrpo.types import Box, Score, box_image
from rewards.base import Report, Reward, RewardContext, RewardItem, model_sizes, pixel_sizes

if TYPE_CHECKING:
    from fgrpo.boxes import BoxLike


def score(pred: Sequence[BoxLike], gt: Sequence[BoxLike], normalise: str = "max") -> float:
    """R_S of one rollout, in [0, 1]. Boxes are (x1, y1, x2, y2) in one frame.

    Args:
        pred: predicted boxes; an empty sequence scores 0.
        gt: annotated boxes, at least one.
        normalise: divisor: "max" of both numbers of boxes, the number of "gt" boxes, or of "matched" pairs.

    Raises:
        ValueError: `gt` is empty (such a rollout is "not applicable"), or `normalise` is unknown.
    """
    if not gt:
        raise ValueError("no annotated box: there is nothing to score against")
    return _of_pairs(match(pred, gt), len(pred), len(gt), normalise)


def _of_pairs(pairs: Sequence[tuple[int, int, float]], predicted: int, annotated: int, normalise: str) -> float:
    total = sum(max(0.0, value) for _, _, value in pairs)
    divisors = {"max": max(predicted, annotated), "gt": annotated, "matched": max(1, len(pairs))}
    if normalise not in divisors:
        raise ValueError(f"normalise is one of {', '.join(divisors)}, got {normalise!r}")
    return total / divisors[normalise]


NOT_READ = "boxes_not_read"  # reason of a 0 of a trace whose boxes are all in another form


class SpatialGroundingReward:
    """R_S, with detail:

    - "pred", "gt": boxes in model pixels; "pairs": [i, j, CIoU].
    - "dropped": number of opened boxes that are not valid.
    - "outside": number of predicted boxes that leave the image; None if its size is unknown. Many of them mean that the
      frame is wrong.
    - "unread": number of boxes in another form than `context.box_tag` (`fgrpo.box_forms`), only where there are any. If
      there is no other box the reason is `NOT_READ`. With `context.every_form`, as in evaluation, all forms but `<loc…>` are
      read.
    - "gt_dropped": number of annotated boxes that are not valid or lie beyond the image.
    """

    name = "spatial_grounding"
    report: Report | None = Report(
        "spatial_grounding",
        "spatial grounding",
        symbol="S",
        colour="#CC79A7",
        needs_boxes=True,
        order=3,
        definition="Sum of the CIoU of matched boxes over the larger number of boxes (Eq. 1), where boxes are annotated.",
    )
    needs_trace = True

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
        written, dropped, unread = _written(item, context)
        converted = [_in_model_frame(box, 0, item, context) for box in written]
        pred = [box for box in converted if box.is_valid]  # a huge number may overflow in the conversion
        outside = _count_outside(pred, item, context)
    except IMAGE_ERRORS as error:
        return Score.failure(f"the image's size cannot be read: {error}")
    pairs = match(pred, gt)
    return Score.of(
        _of_pairs(pairs, len(pred), len(gt), context.box_normaliser),
        NOT_READ if unread and not pred else "",
        pred=[list(box) for box in pred],
        gt=[list(box) for box in gt],
        pairs=[list(pair) for pair in pairs],
        dropped=dropped + len(converted) - len(pred),
        outside=outside,
        gt_dropped=len(sample.boxes) - len(gt),
        **({"unread": unread} if unread else {}),
    )


def _written(item: RewardItem, context: RewardContext) -> tuple[tuple[Box, ...], int, int]:
    """(boxes that count, opened ones that are not valid, boxes in forms that are not read) of a trace."""
    think, tag = item.response.think, context.box_tag
    if not context.every_form:
        return item.response.boxes, item.response.dropped_boxes, box_forms.unread(think, tag, context.box_frame).total()
    boxes, dropped = every_box(
        think, box_tag=tag, frame=context.box_frame, sizes=pixel_sizes(item.sample.images, context)
    )
    return boxes, dropped, box_forms.locations(think).total()


def _annotated(box: Box, place: int, item: RewardItem, context: RewardContext) -> Box | None:
    """An annotated box in model pixels; None if it is not valid, or lies beyond its image."""
    if not box.is_valid:
        return None
    converted = _in_model_frame(box, place, item, context)
    if not converted.is_valid:
        return None
    if box.frame == "model":
        return converted
    width, height = _image_sizes(place, item, context)[1]
    is_inside = converted.x1 < width and converted.y1 < height and converted.x2 > 0 and converted.y2 > 0
    return converted if is_inside else None


def _in_model_frame(box: Box, place: int, item: RewardItem, context: RewardContext) -> Box:
    """`box` in pixels of its image as the model sees it."""
    if box.frame == "model":
        return box
    original, resized = _image_sizes(place, item, context)
    return convert(box, "model", original, resized)


def _image_sizes(place: int, item: RewardItem, context: RewardContext) -> tuple[Size, Size]:
    """Sizes (of the file, of the model's input) of the image that holds annotated box `place`.

    Predicted boxes do not name an image and count as place 0 (`box_image`).
    """
    image = item.sample.images[box_image(item.sample, place)]
    (resized,) = model_sizes([image], context)
    return image_size(image), resized


def _count_outside(pred: Sequence[Box], item: RewardItem, context: RewardContext) -> int | None:
    """How many predicted boxes leave every image of the sample by more than a pixel; None if a size cannot be read."""
    if not pred or not item.sample.images:
        return 0 if not pred else None
    try:
        sizes = model_sizes(item.sample.images, context)
    except IMAGE_ERRORS:
        return None  # model pixels can be scored without the image
    width, height = max(w for w, _ in sizes) + 1, max(h for _, h in sizes) + 1
    return sum(box.x1 < -1 or box.y1 < -1 or box.x2 > width or box.y2 > height for box in pred)


REWARD: Reward = SpatialGroundingReward()
