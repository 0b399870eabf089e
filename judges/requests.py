"""What a judge model receives and how its reply is parsed: the fence around untrusted text, and the reply formats.

Text under test is data. It is normalized (NFKC, no invisible or control characters), its angle brackets are escaped and words
in brackets ("[INST]") are moved apart from them, so that no role tag or closing fence survives. It enters the prompt as a JSON string. A reply in any other format than the
requested one is `Unusable`; no reply is read leniently.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Labelled = tuple[str, str]  # label, reason

_LONGEST_REASON = 400
# Control tokens of other model families: [INST], [/INST], [gMASK], [|user|], ◁think▷. "<…>" is escaped, boxes hold numbers.
_CONTROL = re.compile(r"([\[◁])(\|?/?[^\W\d][\w ]{0,40}\|?)(?=[\]▷])")
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, invisible, private and unassigned code points


class Unusable(ValueError):
    """A reply that does not have the requested format."""


@dataclass(frozen=True)
class Call:
    """One request to a judge model: images, then text. The reply is JSON of `schema`, or exactly one of `choices`.

    Attributes:
        system: the system's message; empty: there is none.
        role: the task's name; names the JSON schema and the rows of the cache.
        parse: from the reply's text to `size` labels with reasons. Raises `Unusable`.
        size: number of verdicts in the reply.
    """

    role: str
    text: str
    prompt_hash: str
    parse: Callable[[str], tuple[Labelled, ...]] = field(compare=False)
    images: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    size: int = 1
    system: str = ""


class Trusted(str):
    """Text of our own that a prompt takes as it is. All other text is fenced."""

    __slots__ = ()


class _VisibleCharacters(dict[int, int | None]):
    """For `str.translate`: code points to themselves, invisible ones to None."""

    def __missing__(self, code: int) -> int | None:
        is_visible = chr(code) in "\n\t" or unicodedata.category(chr(code)) not in _UNSEEN
        self[code] = code if is_visible else None
        return self[code]


_VISIBLE = _VisibleCharacters()


def fence(text: str) -> Trusted:
    """Untrusted `text` as a JSON string without tags, control characters or invisible characters."""
    visible = unicodedata.normalize("NFKC", text).translate(_VISIBLE)
    harmless = _CONTROL.sub(r"\1 \2 ", visible) if "[" in visible or "◁" in visible else visible
    return Trusted(json.dumps(html.escape(harmless, quote=False), ensure_ascii=False))


def fence_options(choices: Sequence[str]) -> Trusted:
    """Option texts by letter as a JSON object, each text fenced."""
    return Trusted("{" + ", ".join(f'"{chr(65 + i)}": {fence(choice)}' for i, choice in enumerate(choices)) + "}")


@dataclass(frozen=True)
class ReplyFormat:
    """The format of a reply.

    Attributes:
        schema: JSON schema, from the labels and the number of verdicts.
        parse: labels with reasons, from the reply, the labels and the number of verdicts. Raises `Unusable`.
        is_choice: the reply is one bare label where the endpoint supports structured choices, else JSON of `schema`.
    """

    schema: Callable[[Sequence[str], int], dict[str, Any]]
    parse: Callable[[str, Sequence[str], int], tuple[Labelled, ...]]
    is_choice: bool = False


def _reasoned_schema(labels: Sequence[str], size: int) -> dict[str, Any]:
    return _object({"why": {"type": "string"}, "label": {"type": "string", "enum": list(labels)}})


def _parse_reasoned(reply: str, labels: Sequence[str], size: int) -> tuple[Labelled, ...]:
    return (_labelled(_json_object(reply, {"why", "label"}), labels),)


def _numbered_schema(labels: Sequence[str], size: int) -> dict[str, Any]:
    return _object(dict.fromkeys(_numbers(size), _reasoned_schema(labels, 1)))


def _parse_numbered(reply: str, labels: Sequence[str], size: int) -> tuple[Labelled, ...]:
    verdicts = _json_object(reply, set(_numbers(size)))
    return tuple(_labelled(verdicts[number], labels) for number in _numbers(size))


def _label_schema(labels: Sequence[str], size: int) -> dict[str, Any]:
    return _object({"label": {"type": "string", "enum": list(labels)}})


def _parse_label(reply: str, labels: Sequence[str], size: int) -> tuple[Labelled, ...]:
    label = reply.strip()
    if label.startswith("{"):
        label = _json_object(label, {"label"})["label"]
    if label not in labels:
        raise Unusable("not one of the options")
    return ((label, ""),)


REASONED_LABEL = ReplyFormat(_reasoned_schema, _parse_reasoned)
"""`{"why": "...", "label": "..."}`: one verdict with its reason."""

NUMBERED_LABELS = ReplyFormat(_numbered_schema, _parse_numbered)
"""`{"1": {"why": ..., "label": ...}, "2": ...}`: several verdicts in one reply."""

BARE_LABEL = ReplyFormat(_label_schema, _parse_label, is_choice=True)
"""One label alone, or `{"label": "..."}` where the endpoint supports no structured choice."""


def _numbers(size: int) -> list[str]:
    return [str(n + 1) for n in range(size)]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json_object(reply: str, keys: set[str]) -> dict[str, Any]:
    try:
        parsed = json.loads(reply, object_pairs_hook=_without_duplicates)
    except Unusable:
        raise
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(parsed, dict) or set(parsed) != keys:
        raise Unusable("JSON of another shape")
    return parsed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a reply. Two values of one key can be two contradictory verdicts, so none of them counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("a key stands twice")
    return found


def _labelled(verdict: Any, labels: Sequence[str]) -> Labelled:
    if not isinstance(verdict, dict) or set(verdict) != {"why", "label"} or not isinstance(verdict["why"], str):
        raise Unusable("JSON of another shape")
    if verdict["label"] not in labels:
        raise Unusable("a label that was not offered")
    return verdict["label"], verdict["why"][:_LONGEST_REASON]
