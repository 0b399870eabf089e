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
from judges.base import CONSISTENCY_LABELS, GROUNDING_LABELS, UNRESOLVED, ConsistencyItem, ExtractionItem, GroundingItem

FOLDER = Path(__file__).resolve().parent / "prompts"
Labelled = tuple[str, str]  # label, reason
BoxFrame = Literal["thousand", "model", "unit"]

_BOX = re.compile(r"<bbox>([^<]{0,200})</bbox>")
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


def fence(text: str) -> str:
    """Untrusted `text` as a JSON string in which no tag, control or invisible character is left."""
    plain = unicodedata.normalize("NFKC", text)
    kept = (
        c for c in plain if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    )
    return json.dumps(html.escape("".join(kept), quote=False), ensure_ascii=False)


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
    """Options and the closed answer span; the reply is a letter or "0"."""
    template, digest = _prompt("extraction")
    letters = tuple(chr(65 + i) for i in range(len(item.choices)))
    text = prompts.render(template, options=_fence_options(item.choices), answer_span=fence(item.answer_span))
    allowed = (*letters, UNRESOLVED)

    def read(reply: str) -> tuple[Labelled, ...]:
        if reply.strip() not in allowed:
            raise Unusable("not one of the options")
        return ((reply.strip(), ""),)

    return Call("extraction", text, digest, read, choices=allowed)


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
    return _BOX.sub(lambda found: found.group(1).strip(), text)


def _framed_boxes(text: str, item: GroundingItem, frame: BoxFrame) -> str:
    """Boxes in the judge's frame, without tags; one that is no valid box stays as it was written."""

    def put(found: re.Match[str]) -> str:
        boxes, _ = parse_boxes(found.group())
        if not boxes or not item.image_sizes:
            return found.group(1).strip()
        size = item.image_sizes[0]
        box = convert(boxes[0], frame, size, size)
        digits = 3 if frame == "unit" else 0
        return "[" + ",".join(f"{v:.{digits}f}" for v in box) + "]"

    return _BOX.sub(put, text)


def _frame_note(item: GroundingItem, frame: BoxFrame) -> str:
    if frame == "model" or not item.image_sizes:
        size = f" resized to {item.image_sizes[0][0]} x {item.image_sizes[0][1]}" if item.image_sizes else ""
        return f"Coordinates are pixels of the picture{size}, from its upper left corner."
    top = "1000" if frame == "thousand" else "1"
    return f"Coordinates run from 0 to {top} across the picture's width and height, from its upper left corner."
