"""What a step of the search may not be: layout instead of reasoning, or a box that would teach SFT a wrong form or place.

The paper does not say. A step that breaks a rule is rejected and requested again; a chain that a rollout completed with such a
line is left out. Both are counted by kind in report.md. A heading with words after its mark is repaired: the mark goes.

- `code_fence`: a line with ```; `heading`: a heading, or a bold title, that names no region and says nothing else.
- `bad_box`: a box that is opened and is none (not four finite numbers, reversed, not closed).
- `other_form`: a box in another form than the policy's (JSON, bare numbers), which SFT would teach beside it.
- `unit_box`: all four numbers at most 1, where the policy writes pixels or thousandths.
- `outside_box`: a box that leaves every image of the question by more than 1% of its side.

The miniature world's teacher writes no layout, and its noisy boxes are part of its search, so it has no rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo import box_forms
from fgrpo.boxes import PixelBounds, Size, model_size
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.response import parse_boxes
from fgrpo.schema import Config, Policy
from fgrpo.types import Box

SLACK = 0.01  # share of an image's side by which a box may stick out
_FENCE = "```"
_MARK = re.compile(r"^\s{0,3}#{1,6}(?:\s+|$)")
_STEP_TITLE = re.compile(r"(?:step\s*)?\d{0,3}\s*[:.)-]?\s*", re.IGNORECASE)
_BOLD_TITLE = re.compile(r"\*\*[^*]{1,80}\*\*\s*:?\s*")
_TITLE_WORDS = 4  # a heading of at most so many words is a title


@dataclass(frozen=True)
class StepRules:
    """The rules for a policy's box form and frame; `pixels` are the bounds of the teacher's processor."""

    policy: Policy
    pixels: PixelBounds

    @staticmethod
    def repaired(step: str) -> str:
        """`step` without the mark of a heading that says something."""
        return step if is_title(step) else _MARK.sub("", step)

    def problem(self, step: str, images: Sequence[str]) -> str | None:
        """The rule that `step` breaks, in one word; None if it breaks none."""
        if _FENCE in step:
            return "code_fence"
        if is_title(step):
            return "heading"
        tag, frame = self.policy.box_tag, self.policy.box_frame
        boxes, dropped = parse_boxes(step, box_tag=tag, frame=frame)
        if dropped:
            return "bad_box"
        if box_forms.unread(step, tag):
            return "other_form"
        if frame != "unit" and any(max(box) <= 1 for box in boxes):
            return "unit_box"
        sizes = self._extents(images)
        if sizes and any(all(_leaves(box, size) for size in sizes) for box in boxes):
            return "outside_box"
        return None

    def _extents(self, images: Sequence[str]) -> list[Size]:
        """Width and height of each image in the policy's frame; [] if one cannot be read (the engine names it)."""
        frame = self.policy.box_frame
        if frame in ("unit", "thousand"):
            side = 1 if frame == "unit" else 1000
            return [(side, side)] * min(1, len(images))
        try:
            sizes = [image_size(path) for path in images]
            return sizes if frame == "original" else [model_size(size, *self.pixels) for size in sizes]
        except IMAGE_ERRORS:
            return []


def rules_of(config: Config) -> StepRules | None:
    """The rules of a configuration; None in the miniature world."""
    return None if config.world is not None else StepRules(config.policy, pixel_bounds(config.models.teacher))


def is_title(step: str) -> bool:
    """Whether a line is a heading or a bold title and no more: few words, and no region."""
    if _BOLD_TITLE.fullmatch(step.strip()):
        return True
    mark = _MARK.match(step)
    if mark is None:
        return False
    words = _STEP_TITLE.sub("", step[mark.end() :], count=1)
    return "[" not in words and len(words.split()) <= _TITLE_WORDS


def _leaves(box: Box, size: Size) -> bool:
    width, height = size
    least = min(box.x1 / width, box.y1 / height)
    return least < -SLACK or box.x2 > width * (1 + SLACK) or box.y2 > height * (1 + SLACK)
