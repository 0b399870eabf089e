"""Reads a policy's response: the trace, the answer, the boxes. The only parser of model text; it never raises.

Form (Section 3.1): `<think>step1\\n…\\nstepK</think><answer>ANSWER</answer>` with boxes `<bbox>[x1,y1,x2,y2]</bbox>` inside the
steps. The time is linear in the length of any text. The paper does not say what happens to text that breaks the form; the
rules below are ours, and docs and scripts rely on them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fgrpo import box_forms
from fgrpo.types import Box, Frame

_TAG = re.compile(r"</?(?:think|answer)>")
_NUMBER = r"\s*+([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*+"
_FOUR = re.compile(rf"\s*+(\[)?{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}(?(1)\])\s*+")  # brackets: both, or none


@dataclass(frozen=True)
class Response:
    """A parsed response.

    Attributes:
        think: the trace, stripped: from the first `<think>` to the last `</think>`. Without `<think>` the trace begins with
            the text (its prompt may have opened it). An unclosed trace extends to the answer, or to the end. Without either
            tag there is no trace: "".
        answer: the single closed `<answer>` block after the last `</think>` (anywhere if the trace is not closed), stripped;
            None if there is no such block, or more than one.
        boxes: the trace's boxes with four finite numbers, x1 < x2 and y1 < y2, in order.
        well_formed: the text is exactly one think block and one answer block; blanks around and between them are ignored.
        dropped_boxes: number of opened boxes of the trace that are not in `boxes`.
    """

    think: str
    answer: str | None
    boxes: tuple[Box, ...]
    well_formed: bool
    dropped_boxes: int = 0


def parse(text: str, *, box_tag: str = "bbox", frame: Frame = "model") -> Response:
    """Parse one response; `box_tag` and `frame` are for models that write boxes differently (TreeVGR: "box")."""
    closed_at = text.rfind("</think>")
    opened_at = text.find("<think>")
    after = closed_at + len("</think>") if closed_at >= 0 else 0
    blocks = _answer_blocks(text, after)
    answer = text[blocks[0][0] : blocks[0][1]].strip() if len(blocks) == 1 else None
    if closed_at >= 0:
        begin = opened_at + len("<think>") if 0 <= opened_at < closed_at else 0
        think = text[begin:closed_at]
    elif opened_at >= 0:
        begin = opened_at + len("<think>")
        end = blocks[0][0] - len("<answer>") if len(blocks) == 1 else len(text)
        think = text[begin:end]
    else:
        think = ""
    boxes, dropped = parse_boxes(think, box_tag=box_tag, frame=frame)
    return Response(think.strip(), answer, boxes, _is_well_formed(text), dropped)


def parse_boxes(text: str, *, box_tag: str = "bbox", frame: Frame = "model") -> tuple[tuple[Box, ...], int]:
    """The valid boxes of `text` in one form (`fgrpo.box_forms`), and the number of opened ones that are not valid."""
    boxes = []
    for inside in box_forms.pattern(box_tag).findall(text):
        box = _read_box(box_forms.numbers(inside), frame)
        if box is not None:
            boxes.append(box)
    return tuple(boxes), box_forms.opened(text, box_tag) - len(boxes)


def _read_box(inside: str, frame: Frame) -> Box | None:
    """`[x1,y1,x2,y2]` (brackets may be missing) as a valid box, else None."""
    four = _FOUR.fullmatch(inside)
    if four is None:
        return None
    x1, y1, x2, y2 = map(float, four.group(2, 3, 4, 5))
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        return None
    return Box(x1, y1, x2, y2, frame)


def _answer_blocks(text: str, start: int) -> list[tuple[int, int]]:
    """Spans inside closed answer blocks from `start` on; a second opening tag restarts the block."""
    blocks, opened = [], None
    for tag in _TAG.finditer(text, start):
        if tag.group() == "<answer>":
            opened = tag.end()
        elif tag.group() == "</answer>" and opened is not None:
            blocks.append((opened, tag.start()))
            opened = None
    return blocks


def _is_well_formed(text: str) -> bool:
    spans = []
    for tag in _TAG.finditer(text):
        spans.append(tag)
        if len(spans) > 4:
            return False
    if [tag.group() for tag in spans] != ["<think>", "</think>", "<answer>", "</answer>"]:
        return False
    outside = text[: spans[0].start()] + text[spans[1].end() : spans[2].start()] + text[spans[3].end() :]
    return not outside.strip()
