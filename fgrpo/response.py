"""Reads a policy's response: the trace, the answer, the boxes. The only parser of model text; it never raises.

Form (Section 3.1): `<think>step1\\n…\\nstepK</think><answer>ANSWER</answer>` with boxes `<bbox>[x1,y1,x2,y2]</bbox>` inside the
steps. The time is linear in the length of any text. The paper does not say what happens to text that breaks the form; the
rules below are ours, and docs and scripts rely on them. Training reads the policy's own tags, letter for letter (`OWN`).
Evaluation reads the tags of the evaluated model (`Tags`, by default `COMMON`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fgrpo import box_forms, keyed_reply
from fgrpo.types import Box, Frame

_NUMBER = r"\s*+([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*+"
_FOUR = re.compile(rf"\s*+(\[)?{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}(?(1)\])\s*+")  # brackets: both, or none


class Split(NamedTuple):
    """The trace ("" where there is none) and the answer of a reply without tags."""

    think: str
    answer: str


@dataclass(frozen=True)
class Tags:
    """The tags of a model's replies, by their opening tags, or as pairs; `closing` gives the closing ones.

    Attributes:
        think: opening tags of a trace; all count alike.
        answer: opening tags of an answer block; of nested blocks the inner one counts.
        case_blind: whether `<THINK>` is `<think>`.
        opened: the chat template writes the opening tag, so a reply begins inside its trace.
        untagged: reads a reply without a trace between tags: its text, where its answer block stands (None: nowhere), and the
            options (none for an open question). A reply in JSON is then read by its keys (`fgrpo.keyed_reply`).
    """

    think: tuple[str, ...] = ("<think>",)
    answer: tuple[str, ...] = ("<answer>",)
    case_blind: bool = False
    opened: bool = False
    untagged: Callable[[str, tuple[int, int] | None, Sequence[str]], Split] | None = None


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


def parse(
    text: str,
    *,
    box_tag: str = "bbox",
    frame: Frame = "model",
    tags: Tags = OWN,
    choices: Sequence[str] = (),
) -> Response:
    """Parse one response; `box_tag`, `frame` and `tags` are for models that write differently (TreeVGR: "box").

    Args:
        choices: the question's options, for `Tags.untagged`.
    """
    think, answer, has_trace, _ = parts = _parts(text, tags)
    if tags.untagged is not None and parts.rest is not None and not think.strip():
        think, answer = _untagged(text, parts, tags, choices)
        has_trace = has_trace or bool(think)
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
    return _Parts("", answer, False, 0)


def _untagged(text: str, parts: _Parts, tags: Tags, choices: Sequence[str]) -> tuple[str, str | None]:
    """Trace and answer of a reply whose tags hold no trace."""
    assert tags.untagged is not None
    body = text[parts.rest :]
    if (keyed := keyed_reply.read(body)) is not None and parts.answer is None:
        place = keyed.start, keyed.end
        return keyed.think or tags.untagged(body, place, choices).think, keyed.answer
    found = [tag for tag in _tag_pattern(tags).finditer(body) if tag.lastgroup in ("answer", "answer_end")]
    if not any(tag.lastgroup == "answer" for tag in found):
        return tags.untagged(_tag_pattern(tags).sub("", body), None, choices)
    return tags.untagged(body, (found[0].start(), found[-1].end()), choices).think, parts.answer


def answer_span(text: str, tags: Tags = COMMON) -> str | None:
    """The span of the answer: the closed answer block, else the text after the trace, else a text without a trace (`untagged`
    changes none of this, but for a reply in JSON).

    None: the trace or the answer block is not closed, there are two blocks, or nothing follows the trace.
    """
    parts = _parts(text, tags)
    if parts.answer is not None:
        return parts.answer or None
    if parts.rest is None:
        return None
    if tags.untagged is not None and (keyed := keyed_reply.read(text[parts.rest :])) is not None:
        return keyed.answer
    if any(tag.lastgroup == "answer" for tag in _tag_pattern(tags).finditer(text, parts.rest)):
        return None
    return _tag_pattern(tags).sub("", text[parts.rest :]).strip() or None


_THINK_TAGS = re.compile("|".join(re.escape(tag) for one in COMMON.think for tag in (one, closing(one))), re.IGNORECASE)
_EMPTY_TRACE = re.compile(
    rf"^\s*+(?:(?:{'|'.join(map(re.escape, COMMON.think))})\s*+)?(?:{'|'.join(re.escape(closing(tag)) for tag in COMMON.think)})",
    re.IGNORECASE,
)


def with_trace(content: str, reasoning: object, prefix: str = "") -> str:
    """A reply in one text: reasoning that an endpoint returned in a field of its own becomes the trace before the answer.

    Args:
        content: the reply's text.
        reasoning: what the field holds. Anything but a text with visible characters counts as no reasoning.
        prefix: the beginning of the assistant's turn; if it opened the trace, no second tag is written.

    An empty think block with which `content` begins is dropped.
    """
    trace = _THINK_TAGS.sub("", reasoning).strip() if isinstance(reasoning, str) else ""
    if not trace or trace in parse(content, tags=COMMON).think:
        return content
    content = _EMPTY_TRACE.sub("", content)
    if not prefix.rstrip().lower().endswith(tuple(tag.lower() for tag in COMMON.think)):
        trace = f"<think>{trace}"
    return f"{trace}</think>{content}" if content.strip() else trace


def parse_boxes(text: str, *, box_tag: str = "bbox", frame: Frame = "model") -> tuple[tuple[Box, ...], int]:
    """The valid boxes of `text` in one form (`fgrpo.box_forms`), and the number of opened ones that are not valid."""
    boxes = []
    for inside in box_forms.pattern(box_tag).findall(text):
        box = _read_box(box_forms.numbers(inside, box_tag), frame)
        if box is not None:
            boxes.append(box)
    return tuple(boxes), box_forms.opened(text, box_tag) - len(boxes)


def every_box(
    text: str, *, box_tag: str = "bbox", frame: Frame = "model", sizes: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[Box, ...], int]:
    """`parse_boxes` over every form that can be read (`box_forms.written`), in order, in `frame`; percentages in "unit".

    Args:
        text: of a model, whose own form is `box_tag`.
        sizes: (width, height) of the images in pixels of `frame`; empty if unknown.
    """
    found = [one for one in box_forms.written(text, box_tag, frame, sizes) if one.form not in box_forms.POINTS]
    boxes = [box for one in found if (box := box_of(one, frame)) is not None]
    closed = sum(one.form == box_tag and one.is_first for one in found)
    return tuple(boxes), max(0, box_forms.opened(text, box_tag) - closed) + len(found) - len(boxes)


def box_of(one: box_forms.Written, frame: Frame) -> Box | None:
    """What a text writes as a valid box; None for a point, and for four numbers that are no box."""
    return Box(*one.numbers, one.frame or frame) if len(one.numbers) == 4 else None


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
