"""What a model judge is sent and how its reply is read: pure functions from items to calls and from replies to labels.

Text under test is data. It is normalised (NFKC, no invisible or control characters), its angle brackets are escaped, so that
no role tag or closing fence survives, and it stands in the prompt as a JSON string. Prompts are files of judges/prompts,
rendered in one pass; their hash goes into every verdict. A reply that is not exactly what was asked for is `Unusable`.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fgrpo import prompts
from fgrpo.boxes import convert
from fgrpo.response import parse_boxes
from fgrpo.types import Box, Frame
from judges.base import CONSISTENCY_LABELS, GROUNDING_LABELS, UNRESOLVED, ConsistencyItem, ExtractionItem, GroundingItem

FOLDER = Path(__file__).resolve().parent / "prompts"
Labelled = tuple[str, str]  # label, reason
BoxFrame = Literal["thousand", "model", "unit"]

_ANY_BOX = re.compile(r"<(\w{1,12})>\s*(\[[^<]{0,200}\])\s*</\1>")
_PIXELS: tuple[Frame, ...] = ("model", "original")
_LONGEST_REASON = 400


class Unusable(ValueError):
    """A reply that answers something other than what was asked."""


@dataclass(frozen=True)
class Call:
    """One request to a judge model: pictures, then text; the reply is JSON of `schema`, or exactly one of `choices`."""

    role: str
    text: str
    prompt_hash: str
    read: Callable[[str], tuple[Labelled, ...]] = field(compare=False)
    images: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    size: int = 1  # how many labels the reply holds


@lru_cache(maxsize=8)
def _prompt(role: str) -> tuple[str, str]:
    template = prompts.read(role, FOLDER)
    return template, prompts.digest(template)


def prompt_hashes() -> dict[str, str]:
    """The hash of each role's prompt file."""
    return {path.stem: _prompt(path.stem)[1] for path in sorted(FOLDER.glob("*.txt"))}


class _Kept(dict[int, int | None]):
    """For `str.translate`: code points to themselves, or to None for control, invisible, private and unknown ones."""

    def __missing__(self, code: int) -> int | None:
        is_kept = chr(code) in "\n\t" or unicodedata.category(chr(code)) not in _UNSEEN
        self[code] = code if is_kept else None
        return self[code]


_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_KEPT = _Kept()


def fence(text: str) -> str:
    """Untrusted `text` as a JSON string in which no tag, control or invisible character is left."""
    seen = unicodedata.normalize("NFKC", text).translate(_KEPT)
    return json.dumps(html.escape(seen, quote=False), ensure_ascii=False)


def _fence_options(choices: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{chr(65 + i)}": {fence(choice)}' for i, choice in enumerate(choices)) + "}"


def consistency_call(item: ConsistencyItem) -> Call:
    """Text alone: question, options, trace, answer."""
    template, digest = _prompt("consistency")
    text = prompts.render(
        template,
        question=fence(item.question),
        options=_fence_options(item.choices) if item.choices else "(none)",
        think=fence(_plain_boxes(item.think)),
        answer=fence(item.answer),
    )
    schema = _object({"why": {"type": "string"}, "label": {"type": "string", "enum": list(CONSISTENCY_LABELS)}})

    def read(reply: str) -> tuple[Labelled, ...]:
        return (_labelled(_json_object(reply, {"why", "label"}), CONSISTENCY_LABELS),)

    return Call("consistency", text, digest, read, schema=schema)


def grounding_call(item: GroundingItem, frame: BoxFrame) -> Call:
    """Pictures, question, the whole reasoning; one label for each sentence that is to be judged, in one reply.

    Raises:
        ValueError: the item's contexts are not what precedes its sentences.
    """
    template, digest = _prompt("grounding")
    lines, number = [], 0
    places = {len(context): i for i, context in enumerate(item.contexts)}
    whole = (*item.contexts[-1], item.sentences[-1]) if item.sentences else ()
    for place, sentence in enumerate(whole):
        if place in places:
            if item.sentences[places[place]] != sentence or item.contexts[places[place]] != whole[:place]:
                raise ValueError(f"grounding item {item.id}: contexts are not what precedes the sentences")
            number += 1
        mark = f"{number}." if place in places else "-"
        lines.append(f"{mark} {fence(_framed_boxes(sentence, item, frame))}")
    if number != len(item.sentences):
        raise ValueError(f"grounding item {item.id}: two sentences have one place")
    keys = [str(n + 1) for n in range(number)]
    text = prompts.render(
        template,
        question=fence(item.question),
        sentences="\n".join(lines),
        frame_note=_frame_note(item, frame),
    )
    one = _object({"why": {"type": "string"}, "label": {"type": "string", "enum": list(GROUNDING_LABELS)}})

    def read(reply: str) -> tuple[Labelled, ...]:
        found = _json_object(reply, set(keys))
        return tuple(_labelled(found[key], GROUNDING_LABELS) for key in keys)

    return Call("grounding", text, digest, read, item.images, _object(dict.fromkeys(keys, one)), size=number)


def extraction_call(item: ExtractionItem) -> Call:
    """Options and the closed answer span; the reply is a letter or "0" (in JSON, where an endpoint has no structured choice)."""
    template, digest = _prompt("extraction")
    letters = tuple(chr(65 + i) for i in range(len(item.choices)))
    text = prompts.render(template, options=_fence_options(item.choices), answer_span=fence(item.answer_span))
    allowed = (*letters, UNRESOLVED)

    def read(reply: str) -> tuple[Labelled, ...]:
        said = reply.strip()
        if said.startswith("{"):
            said = _json_object(said, {"label"})["label"]
        if said not in allowed:
            raise Unusable("not one of the options")
        return ((said, ""),)

    schema = _object({"label": {"type": "string", "enum": list(allowed)}})
    return Call("extraction", text, digest, read, schema=schema, choices=allowed)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json_object(reply: str, keys: set[str]) -> dict[str, Any]:
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(found, dict) or set(found) != keys:
        raise Unusable("JSON of another shape")
    return found


def _labelled(found: Any, labels: Sequence[str]) -> Labelled:
    if not isinstance(found, dict) or set(found) != {"why", "label"} or not isinstance(found["why"], str):
        raise Unusable("JSON of another shape")
    if found["label"] not in labels:
        raise Unusable("a label that was not offered")
    return found["label"], found["why"][:_LONGEST_REASON]


def _plain_boxes(text: str) -> str:
    """Boxes without their tags, which would only be escaped."""
    return _ANY_BOX.sub(lambda found: found.group(2), text)


def _framed_boxes(text: str, item: GroundingItem, frame: BoxFrame) -> str:
    """Boxes in the frame that the judge is told of, without tags; one that is no valid box stays as it was written.

    A box does not say which picture it is in: where pictures differ in size, it is said for each that it fits in.
    """
    said = _said_frame(item, frame)

    def put(found: re.Match[str]) -> str:
        boxes, _ = parse_boxes(found.group(), box_tag=item.box_tag, frame=item.box_frame)
        if not boxes or said == item.box_frame:
            return found.group(1).strip()
        pictures = list(enumerate(item.image_sizes or ((1, 1),), start=1))
        if len({size for _, size in pictures}) == 1:
            return _written(boxes[0], said, pictures[0][1])
        is_pixels = item.box_frame in _PIXELS
        fitting = [(n, s) for n, s in pictures if not is_pixels or (boxes[0].x2 <= s[0] and boxes[0].y2 <= s[1])]
        if not fitting:
            return f"{found.group(1).strip()} (pixels beyond every picture)"
        return " or ".join(f"{_written(boxes[0], said, size)} (picture {n})" for n, size in fitting)

    return _tagged(item.box_tag).sub(put, text)


@lru_cache(maxsize=16)
def _tagged(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<{re.escape(tag)}>([^<]{{0,200}})</{re.escape(tag)}>")


def _written(box: Box, frame: Frame, size: tuple[int, int]) -> str:
    digits = 3 if frame == "unit" else 0
    return "[" + ",".join(f"{v:.{digits}f}" for v in convert(box, frame, size, size)) + "]"


def _said_frame(item: GroundingItem, frame: BoxFrame) -> Frame:
    """The frame in which the judge is told the boxes: its own, or the text's where nothing can or need be converted."""
    both_pixels = frame in _PIXELS and item.box_frame in _PIXELS
    both_relative = frame not in _PIXELS and item.box_frame not in _PIXELS
    if both_pixels or not (item.image_sizes or both_relative):
        return item.box_frame
    return frame


def _frame_note(item: GroundingItem, frame: BoxFrame) -> str:
    said, sizes = _said_frame(item, frame), item.image_sizes
    if said not in _PIXELS:
        top = "1000" if said == "thousand" else "1"
        note = f"Coordinates run from 0 to {top} across a picture's width and height, from its upper left corner."
        if len(set(sizes)) > 1 and item.box_frame in _PIXELS:
            note += " The pictures differ in size, so a box is given for each picture that it may be meant for."
        return note
    if len(set(sizes)) <= 1:
        size = f" resized to {sizes[0][0]} x {sizes[0][1]}" if sizes else ""
        return f"Coordinates are pixels of the picture{size}, from its upper left corner."
    each = ", ".join(f"picture {n} to {w} x {h}" for n, (w, h) in enumerate(sizes, start=1))
    return f"Coordinates are pixels, from the upper left corner, of the pictures as resized: {each}."
