"""Boxes and points inside the text that a judge reads: tags are removed, and numbers of every form are in the judge's frame.

The English written here is part of the grounding prompt: to change a word would make cached replies useless.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgrpo import box_forms
from fgrpo.boxes import Size, convert
from fgrpo.response import box_of
from fgrpo.types import Box, Frame
from judges.task import BoxFrame

_PIXELS: tuple[Frame, ...] = ("model", "original")


def without_tags(text: str) -> str:
    """Boxes and points of any tag without their tags, which the fence would only escape."""
    return box_forms.without_marks(text)


@dataclass(frozen=True)
class BoxNotation:
    """How a text writes boxes.

    Attributes:
        tag: the form of its boxes (`fgrpo.box_forms`).
        frame: the frame of their numbers.
        image_sizes: (width, height) of each image in pixels of that frame (`model` or `original`); empty if unknown.
    """

    tag: str
    frame: Frame
    image_sizes: tuple[Size, ...]

    def shown_frame(self, judge_frame: BoxFrame) -> Frame:
        """The frame in which a judge reads the boxes: its own, or the text's where no conversion is possible or needed."""
        both_pixels = judge_frame in _PIXELS and self.frame in _PIXELS
        both_relative = judge_frame not in _PIXELS and self.frame not in _PIXELS
        if both_pixels or not (self.image_sizes or both_relative):
            return self.frame
        return judge_frame

    def rewrite(self, text: str, judge_frame: BoxFrame) -> str:
        """`text` with its boxes in the shown frame, without tags, whatever their form. One that is not valid keeps its numbers.

        A box does not say which image it lies in. If images differ in size, it is converted for each image that it fits in.
        """
        shown = self.shown_frame(judge_frame)
        pieces, at = [], 0
        for one in box_forms.written(text, self.tag, self.frame, self.image_sizes):
            pieces += [text[at : one.start], self._rewritten(one, shown)]
            at = one.end
        return "".join([*pieces, text[at:]])

    def _rewritten(self, one: box_forms.Written, shown: Frame) -> str:
        """One box, or point, in the frame `shown`."""
        box = _point(one, self.frame) or box_of(one, self.frame)
        if box is None or shown == box.frame or not (self.image_sizes or shown not in _PIXELS):
            return one.inside.strip()
        images = list(enumerate(self.image_sizes or ((1, 1),), start=1))
        if len({size for _, size in images}) == 1 or not {shown, box.frame}.intersection(_PIXELS):
            return _numbers(box, shown, images[0][1])
        is_pixels = box.frame in _PIXELS
        fitting = [(n, s) for n, s in images if not is_pixels or (box.x2 <= s[0] and box.y2 <= s[1])]
        if not fitting:
            return f"{one.inside.strip()} (pixels beyond every picture)"
        return " or ".join(f"{_numbers(box, shown, size)} (picture {n})" for n, size in fitting)

    def note(self, judge_frame: BoxFrame) -> str:
        """The sentence of the prompt that explains the coordinates."""
        shown, sizes = self.shown_frame(judge_frame), self.image_sizes
        if shown not in _PIXELS:
            top = "1000" if shown == "thousand" else "1"
            note = f"Coordinates run from 0 to {top} across a picture's width and height, from its upper left corner."
            if len(set(sizes)) > 1 and self.frame in _PIXELS:
                note += " The pictures differ in size, so a box is given for each picture that it may be meant for."
            return note
        if len(set(sizes)) <= 1:
            size = f" resized to {sizes[0][0]} x {sizes[0][1]}" if sizes else ""
            return f"Coordinates are pixels of the picture{size}, from its upper left corner."
        each = ", ".join(f"picture {n} to {w} x {h}" for n, (w, h) in enumerate(sizes, start=1))
        return f"Coordinates are pixels, from the upper left corner, of the pictures as resized: {each}."


def _point(one: box_forms.Written, frame: Frame) -> Box | None:
    """A point as a box without extent; None for what is not a point."""
    if len(one.numbers) != 2:
        return None
    x, y = one.numbers
    return Box(x, y, x, y, one.frame or frame)


def _numbers(box: Box, frame: Frame, size: Size) -> str:
    """The four numbers of a box, or the two of a point, in `frame`."""
    digits = 3 if frame == "unit" else 0
    shown = tuple(convert(box, frame, size, size))
    corners = shown[:2] if (box.x1, box.y1) == (box.x2, box.y2) else shown
    return "[" + ",".join(f"{v:.{digits}f}" for v in corners) + "]"
