"""Reads a policy's response: the trace, the answer, the boxes. The only parser of model text; it never raises.

Form (Section 3.1): `<think>step1\\n…\\nstepK</think><answer>ANSWER</answer>` with boxes `<bbox>[x1,y1,x2,y2]</bbox>` inside the
steps. The time is linear in the length of any text. The paper does not say what happens to text that breaks the form; the
rules below are ours, and docs and scripts rely on them. Training reads the policy's own tags, letter for letter (`OWN`).
Evaluation reads the tags of the evaluated model (`Tags`, by default `COMMON`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fgrpo import box_forms
from fgrpo.types import Box, Frame

_NUMBER = r"\s*+([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*+"
_FOUR = re.compile(rf"\s*+(\[)?{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}(?(1)\])\s*+")  # brackets: both, or none


@dataclass(frozen=True)
class Tags:
    """The tags of a model's replies, by their opening tags, or as pairs; `closing` gives the closing ones.

    Attributes:
        think: opening tags of a trace; all count alike.
        answer: opening tags of an answer block; of nested blocks the inner one counts.
        case_blind: whether `<THINK>` is `<think>`.
        opened: the chat template writes the opening tag, so a reply begins inside its trace.
        before_answer: the trace of a reply without think tags is what precedes its answer (`_answer_start`).
    """

    think: tuple[str, ...] = ("<think>",)
    answer: tuple[str, ...] = ("<answer>",)
    case_blind: bool = False
    opened: bool = False
    before_answer: bool = False


OWN = Tags()
"""The tags that the policy is trained to write (Section 3.1)."""

COMMON = Tags(
    think=(
        "<think>",
        "<thinking>",
        "◁think▷",
        "<reasoning>",
        "<thought>",
        "[THINK]",
        "<|START_THINKING|>",
        "<seed:think>",
    ),
    answer=("<answer>", "<|begin_of_box|>"),
    case_blind=True,
)
"""The tags of common model families, for replies of any model."""


_ENDS = (("begin", "end"), ("<|START", "<|END"), ("<|start", "<|end"))


def closing(tag: str) -> str:
    """The closing tag of an opening tag: `</think>`, `◁/think▷`, `<|end_of_box|>`, `<|END_THINKING|>`.

    A model file may name a pair with a blank between its tags; `tag` then is that pair.

    Raises:
        ValueError: `tag` is no tag: it has fewer than three characters, or letters at its ends; or it is more than a pair.
    """
    parts = tag.split()
    if not 1 <= len(parts) <= 2 or tag.strip() != tag or not all(map(_is_tag, parts)):
        raise ValueError(
            f"{tag!r} is no opening tag; write it as <think>, ◁think▷ or <|begin_of_box|>, or as a pair: '<scratch> <|done|>'"
        )
    if len(parts) == 2:
        return parts[1]
    for begin, end in _ENDS:
        if begin in tag:
            return tag.replace(begin, end, 1)
    return tag[0] + "/" + tag[1:]


def _is_tag(part: str) -> bool:
    return len(part) >= 3 and not (part[0].isalnum() or part[-1].isalnum())


def opening(tag: str) -> str:
    """The opening tag of a tag, or of a pair (`closing`)."""
    return tag.split()[0]


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
        well_formed: the text is exactly one think block and one answer block, in the tags of `OWN`; blanks around and
            between them are ignored.
        dropped_boxes: number of opened boxes of the trace that are not in `boxes`.
        has_trace: whether the text shows a trace, even an empty one.
    """

    think: str
    answer: str | None
    boxes: tuple[Box, ...]
    well_formed: bool
    dropped_boxes: int = 0
    has_trace: bool = True


def parse(text: str, *, box_tag: str = "bbox", frame: Frame = "model", tags: Tags = OWN) -> Response:
    """Parse one response; `box_tag`, `frame` and `tags` are for models that write differently (TreeVGR: "box")."""
    think, answer, has_trace, _ = _parts(text, tags)
    boxes, dropped = parse_boxes(think, box_tag=box_tag, frame=frame)
    return Response(think.strip(), answer, boxes, _is_well_formed(text), dropped, has_trace)


def answer_place(text: str, *, tags: Tags = OWN) -> tuple[int, int] | None:
    """Where `Response.answer` stands: (start, end) with text[start:end] == answer; None where there is none."""
    found = list(_tag_pattern(tags).finditer(text))
    closed = [tag for tag in found if tag.lastgroup == "think_end"]
    return _place(text, _answer_blocks(found, closed[-1].end() if closed else 0))


def _place(text: str, blocks: Sequence[tuple[re.Match[str], re.Match[str]]]) -> tuple[int, int] | None:
    """Where the content of a single answer block stands, stripped."""
    if len(blocks) != 1:
        return None
    first, last = blocks[0][0].end(), blocks[0][1].start()
    inside = text[first:last]
    start = first + len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


class _Parts(NamedTuple):
    """Trace, answer, whether there is a trace, and where the text after it begins (None: the trace is not closed)."""

    think: str
    answer: str | None
    has_trace: bool
    rest: int | None


def _parts(text: str, tags: Tags) -> _Parts:
    found = list(_tag_pattern(tags).finditer(text))
    closed = [tag for tag in found if tag.lastgroup == "think_end"]
    opened = [tag.end() for tag in found if tag.lastgroup == "think"]
    if tags.opened:
        opened.insert(0, 0)
    blocks = _answer_blocks(found, closed[-1].end() if closed else 0)
    place = _place(text, blocks)
    answer = None if place is None else text[slice(*place)]
    if closed:
        end = closed[-1].start()
        start = opened[0] if opened and opened[0] <= end else 0
        return _Parts(text[start:end], answer, True, closed[-1].end())
    if opened:
        think = text[opened[0] : blocks[0][0].start() if len(blocks) == 1 else len(text)]
        return _Parts(think, answer, True, None)
    if tags.before_answer:
        first = next((tag.start() for tag in found if tag.lastgroup == "answer"), None)
        start = _answer_start(text) if first is None else first
        return _Parts(text[:start], answer, bool(text[:start].strip()), start)
    return _Parts("", answer, False, 0)


_BOXED = re.compile(r"\\boxed\s*\{")
_SENTENCE_END = re.compile(r"[.!?:]\s+|\n")
_STATED = re.compile(r"\banswer(?: to [^\n:]{0,80}?)?\W{0,4}(?:\bis\b|:|$)", re.IGNORECASE | re.MULTILINE)


def _answer_start(text: str) -> int:
    """Where the answer of a reply without tags begins.

    It is the sentence of the last `\\boxed{}`, else the last line that states an answer ("The answer is", "Answer:"), else
    the last line. A reply of one line without such a box has no trace: 0.
    """
    boxed = [match.start() for match in _BOXED.finditer(text)]
    if boxed:
        ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, boxed[-1])]
        return ends[-1] if ends else 0
    stated = [match.start() for match in _STATED.finditer(text)]
    return text.rfind("\n", 0, stated[-1] if stated else len(text.rstrip())) + 1


def answer_span(text: str, tags: Tags = COMMON) -> str | None:
    """The span of the answer: the closed answer block, else the text after the trace, else a text without a trace.

    None: the trace or the answer block is not closed, there are two blocks, or nothing follows the trace.
    """
    parts = _parts(text, tags)
    if parts.answer is not None:
        return parts.answer or None
    if parts.rest is None:
        return None
    if any(tag.lastgroup == "answer" for tag in _tag_pattern(tags).finditer(text, parts.rest)):
        return None
    return _tag_pattern(tags).sub("", text[parts.rest :]).strip() or None


def with_trace(content: str, reasoning: object, prefix: str = "") -> str:
    """A reply in one text: reasoning that an endpoint returned in a field of its own becomes the trace before the answer.

    Args:
        content: the reply's text.
        reasoning: what the field holds. Anything but a text with visible characters counts as no reasoning.
        prefix: the beginning of the assistant's turn; if it opened the trace, no second tag is written.
    """
    trace = _tag_pattern(Tags(COMMON.think, (), True)).sub("", reasoning).strip() if isinstance(reasoning, str) else ""
    if not trace or trace in parse(content, tags=COMMON).think:
        return content
    if not prefix.rstrip().lower().endswith(tuple(tag.lower() for tag in COMMON.think)):
        trace = f"<think>{trace}"
    return f"{trace}</think>{content}" if content.strip() else trace


def parse_boxes(text: str, *, box_tag: str = "bbox", frame: Frame = "model") -> tuple[tuple[Box, ...], int]:
    """The valid boxes of `text` in one form (`fgrpo.box_forms`), and the number of opened ones that are not valid."""
    boxes = []
    for inside in box_forms.pattern(box_tag).findall(text):
        box = _read_box(box_forms.numbers(inside), frame)
        if box is not None:
            boxes.append(box)
    return tuple(boxes), box_forms.opened(text, box_tag) - len(boxes)


def every_box(text: str, *, box_tag: str = "bbox", frame: Frame = "model") -> tuple[tuple[Box, ...], int]:
    """`parse_boxes` over every form that can be read (`box_forms.written`), in order, all in `frame`."""
    found = [one for one in box_forms.written(text, box_tag) if one.form not in box_forms.POINTS]
    boxes = [box for one in found if (box := box_of(one, frame)) is not None]
    of_others = sum(one.form != box_tag for one in found)
    return tuple(boxes), box_forms.opened(text, box_tag) + of_others - len(boxes)


def box_of(one: box_forms.Written, frame: Frame) -> Box | None:
    """What a text writes as a valid box; None for a point, and for four numbers that are no box."""
    return _read_box(box_forms.numbers(one.inside), frame)


def _read_box(inside: str, frame: Frame) -> Box | None:
    """`[x1,y1,x2,y2]` (brackets may be missing) as a valid box, else None."""
    four = _FOUR.fullmatch(inside)
    if four is None:
        return None
    x1, y1, x2, y2 = map(float, four.group(2, 3, 4, 5))
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        return None
    return Box(x1, y1, x2, y2, frame)


@lru_cache(maxsize=64)
def _tag_pattern(tags: Tags) -> re.Pattern[str]:
    """All tags; the group that matched is "think", "think_end", "answer" or "answer_end"."""
    kinds = {
        "think": tuple(map(opening, tags.think)),
        "think_end": tuple(map(closing, tags.think)),
        "answer": tuple(map(opening, tags.answer)),
        "answer_end": tuple(map(closing, tags.answer)),
    }
    groups = (f"(?P<{kind}>{'|'.join(map(re.escape, members))})" for kind, members in kinds.items() if members)
    return re.compile("|".join(groups), re.IGNORECASE if tags.case_blind else 0)


def _answer_blocks(found: list[re.Match[str]], start: int) -> list[tuple[re.Match[str], re.Match[str]]]:
    """(opening tag, closing tag) of closed answer blocks from `start` on; a second opening tag restarts the block."""
    blocks = []
    opened = None
    for tag in found:
        if tag.start() < start:
            continue
        if tag.lastgroup == "answer":
            opened = tag
        elif tag.lastgroup == "answer_end" and opened is not None:
            blocks.append((opened, tag))
            opened = None
    return blocks


def _is_well_formed(text: str) -> bool:
    spans = []
    for tag in _tag_pattern(OWN).finditer(text):
        spans.append(tag)
        if len(spans) > 4:
            return False
    if [tag.group() for tag in spans] != ["<think>", "</think>", "<answer>", "</answer>"]:
        return False
    outside = text[: spans[0].start()] + text[spans[1].end() : spans[2].start()] + text[spans[3].end() :]
    return not outside.strip()
