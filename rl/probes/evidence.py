"""The annotated region of a rollout's question, as cells of the image-token grid."""

from __future__ import annotations

from fgrpo.boxes import PixelBounds
from fgrpo.images import IMAGE_ERRORS
from fgrpo.policy import cells
from fgrpo.policy.cells import Cells
from fgrpo.types import Sample
from rewards.base import RewardContext
from rewards.probes import Absent

NO_BOXES = Absent("no_boxes", "no boxes are annotated")
NO_VALID_BOX = Absent("no_valid_box", "no annotated box lies in its image")


def evidence(sample: Sample, context: RewardContext) -> Cells | Absent:
    """The cells that the annotated boxes touch, grown by `rl.probes.dilation`; why there are none.

    Args:
        context: its `boxes_from` says whose boxes count, as for spatial grounding.
    """
    if not sample.boxes:
        return NO_BOXES
    if context.boxes_from is not None and sample.source not in context.boxes_from:
        return Absent("boxes_not_used", f"boxes of {sample.source} are not used")
    bounds = PixelBounds(context.min_pixels, context.max_pixels, context.patch_factor)
    try:
        shares = cells.sample_shares(sample, bounds)
    except IMAGE_ERRORS as error:
        return Absent("no_image_size", f"the annotated boxes cannot be placed: {error}", True)
    if shares is None:
        return NO_VALID_BOX
    return cells.dilated(cells.touched(shares), context.probing.dilation)
