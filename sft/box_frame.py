"""Boxes of traces in the policy's frame, where the teacher sees images in another size.

With `policy.box_frame: model`, boxes are pixels of the image as resized for the model. The search writes them in the teacher's
frame; where `policy.pixels`, or the base model's own processor, resizes an image otherwise, SFT would teach wrong places. Other
frames do not depend on the resize.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fgrpo import box_forms
from fgrpo.boxes import PixelBounds, Size, model_size
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.schema import Policy
from sft.dataset import Row

UNKNOWN_IMAGE = "a box that may be in several images of other sizes"
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.([0-9]*))?")


def in_policy_frame(
    rows: Sequence[Row], policy: Policy, teacher: PixelBounds, pixels: PixelBounds, dropped: Counter[str]
) -> list[Row]:
    """`rows` with the boxes of their traces moved from the teacher's resized image to the policy's.

    A row with boxes and several images, which the two resize by different factors, is dropped: a box does not name its image.

    Args:
        teacher, pixels: bounds of the teacher's processor, and of the policy's.
        dropped: counts dropped rows by reason.
    """
    if policy.box_frame != "model" or teacher == pixels:
        return list(rows)
    moved = []
    for row in rows:
        try:
            factors = {_factors(image_size(path), teacher, pixels) for path in row.images}
        except IMAGE_ERRORS:
            moved.append(row)  # `sft.dataset.fitting` drops and counts it
            continue
        if factors == {(1.0, 1.0)} or not box_forms.pattern(policy.box_tag).search(row.completion):
            moved.append(row)
        elif len(factors) > 1:
            dropped[UNKNOWN_IMAGE] += 1
        else:
            moved.append(replace(row, completion=scaled(row.completion, policy.box_tag, *factors.pop())))
    return moved


def scaled(text: str, box_tag: str, across: float, down: float) -> str:
    """`text` with the numbers of its boxes multiplied, x by `across` and y by `down`, with as many decimals as before."""

    def of_box(match: re.Match[str]) -> str:
        numbers = iter((across, down, across, down))

        def of_number(number: re.Match[str]) -> str:
            factor = next(numbers, None)
            if factor is None:  # more than four numbers: no box
                return number[0]
            return f"{float(number[0]) * factor:.{len(number[1] or '')}f}"

        whole, inside = match.group(0), match.group(1)
        return whole.replace(inside, _NUMBER.sub(of_number, inside), 1)

    return box_forms.pattern(box_tag).sub(of_box, text)


def _factors(size: Size, teacher: PixelBounds, pixels: PixelBounds) -> tuple[float, float]:
    """How much wider and higher the policy sees an image than the teacher does."""
    (width, height), (to_width, to_height) = model_size(size, *teacher), model_size(size, *pixels)
    return to_width / width, to_height / height
