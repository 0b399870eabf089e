"""What a step of the search may not be: layout instead of reasoning, or a box that would teach SFT a wrong form or place.

The paper does not say. A step that breaks a rule is rejected and requested again; a chain that a rollout completed with such a
line is left out. Marks around a line that says something (`mcts.layout`) are removed, in steps and in lines of rollouts. All is
counted by kind in report.md.

- `code_fence`, `rule`, `table`, `heading`: layout that says nothing (`mcts.layout.problem`).
- `bad_box`: a box that is opened and is none (not four finite numbers, reversed, not closed).
- `other_form`: a box or a point in another form than the policy's (`box_forms.written`, and `<loc…>`), which SFT would teach
  beside it, and would leave in the teacher's frame.
- `unit_box`: all four numbers below 2, where the policy writes pixels or thousandths. A model that writes units of the image may
  exceed 1 a little; a real box of two pixels or less names no useful region.
- `outside_box`: a box that leaves every image of the question by more than 1% of its side.

The miniature world's teacher writes no layout, and its noisy boxes are part of its search, so it has no rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo import box_forms
from fgrpo.boxes import PixelBounds, Size, model_size
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.response import parse_boxes
from fgrpo.schema import Config, Policy
from fgrpo.types import Box
from mcts import layout

SLACK = 0.01  # share of an image's side by which a box may stick out
UNIT_BELOW = 2  # a box whose numbers are all below it is in units of the image (`fgrpo.boxes.box_of` says why)


@dataclass(frozen=True)
class StepRules:
    """The rules for a policy's box form and frame; `pixels` are the bounds of the teacher's processor."""

    policy: Policy
    pixels: PixelBounds

    @staticmethod
    def repairs(step: str) -> tuple[str, tuple[str, ...]]:
        """`step` without marks of layout, and the kinds of these (`layout.KINDS`); layout that says nothing stays."""
        if layout.problem(step):
            return step, ()
        found = layout.plain(step)
        return (found.text, found.kinds) if found.kinds else (step, ())

    @staticmethod
    def repaired(step: str) -> str:
        """The first result of `repairs`."""
        return StepRules.repairs(step)[0]

    def problem(self, step: str, images: Sequence[str]) -> str | None:
        """The rule that `step` breaks, in one word; None if it breaks none."""
        if found := layout.problem(step):
            return found
        tag, frame = self.policy.box_tag, self.policy.box_frame
        boxes, dropped = parse_boxes(step, box_tag=tag, frame=frame)
        if dropped:
            return "bad_box"
        if box_forms.has_other_form(step, tag):
            return "other_form"
        if frame != "unit" and any(max(box) < UNIT_BELOW for box in boxes):
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


def _leaves(box: Box, size: Size) -> bool:
    width, height = size
    least = min(box.x1 / width, box.y1 / height)
    return least < -SLACK or box.x2 > width * (1 + SLACK) or box.y2 > height * (1 + SLACK)
