"""What a judge model receives and how its reply is parsed: the fence around untrusted text, and the reply formats.

Text under test is data. It is normalized (NFKC, no invisible or control characters), its angle brackets are escaped and words
in brackets ("[INST]") are moved apart from them, so that no role tag or closing fence survives. It enters the prompt as a JSON
string.

A reply may stand in a code fence, after a think block or before a token that ends a turn, have further keys, or write a key or label in another
case: it is read where
only one reading is possible, and the deviation is counted by form. Any other reply is `Unusable`: prose around JSON, a label
that was not offered, a missing verdict, a key that occurs twice, a further key with another label.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgrpo.response import COMMON, closing
from fgrpo.visible_text import as_seen

Labelled = tuple[str, str]  # label, reason

_LONGEST_REASON = 400
# Control tokens of other model families: [INST], [/INST], [gMASK], [|user|], ◁think▷. "<…>" is escaped, boxes hold numbers.
_CONTROL = re.compile(r"([\[◁])(\|?/?[^\W\d][\w ]{0,40}\|?)(?=[\]▷])")
THINK, FENCE, FURTHER_KEY, OTHER_CASE = "think block", "code fence", "further key", "other case"  # forms of a reply
TURN_END = "end of turn"
_OPENED, _CLOSED = ("|".join(map(re.escape, tags)) for tags in (COMMON.think, map(closing, COMMON.think)))
_THOUGHT = re.compile(rf"(?is)\A\s*(?:{_OPENED})?(?:(?!{_OPENED}|{_CLOSED}).)*(?:{_CLOSED})")
_FINAL = re.compile(r"(?s)\A\s*(?:<\|start\|>\w*)?<\|channel\|>.*<\|channel\|>final(?: [^<]*)?<\|message\|>(.*)\Z")
_FINAL_END = re.compile(r"<\|(?:return|end)\|>\s*\Z")
_FENCED = re.compile(r"(?s)\A(```|~~~)[\w-]*[ \t]*\n?(.*)\1\Z")
_TURN_END = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eom_id|end|return|endoftext|end_of_text)\|>|<(?:end_of_turn|eos)>|</s>))+\s*\Z"
)


class Unusable(ValueError):
    """A reply that does not have the requested format."""


class Labels(tuple[Labelled, ...]):
    """Labels with reasons, and the `forms` in which the reply deviates from the requested format."""

    forms: tuple[str, ...] = ()

    @classmethod
    def of(cls, labelled: Sequence[Labelled], forms: Sequence[str]) -> Labels:
        """These labels from a reply with these forms."""
        labels = cls(labelled)
        labels.forms = tuple(dict.fromkeys(forms))
        return labels


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


def fence(text: str) -> Trusted:
    """Untrusted `text` as a JSON string without tags, control characters or invisible characters."""
    seen = as_seen(text)
    harmless = _CONTROL.sub(r"\1 \2 ", seen) if "[" in seen or "◁" in seen else seen
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


def _parse_reasoned(reply: str, labels: Sequence[str], size: int) -> Labels:
    text, forms = unwrapped(reply)
    return Labels.of([_labelled(_json_object(text, {"why", "label"}, forms), labels, forms)], forms)


def _numbered_schema(labels: Sequence[str], size: int) -> dict[str, Any]:
    return _object(dict.fromkeys(_numbers(size), _reasoned_schema(labels, 1)))


def _parse_numbered(reply: str, labels: Sequence[str], size: int) -> Labels:
    text, forms = unwrapped(reply)
    numbers = _numbers(size)
    verdicts = _json_object(text, set(numbers), forms)
    if any(key.isdecimal() for key in verdicts.keys() - set(numbers)):
        raise Unusable("a verdict on an item that is not there")
    labelled = [_labelled(_shaped(verdicts[n], {"why", "label"}, forms), labels, forms) for n in numbers]
    for label, _ in labelled:
        _check_further(verdicts, set(numbers), label, labels)
    return Labels.of(labelled, forms)


def _label_schema(labels: Sequence[str], size: int) -> dict[str, Any]:
    return _object({"label": {"type": "string", "enum": list(labels)}})


def _parse_label(reply: str, labels: Sequence[str], size: int) -> Labels:
    text, forms = unwrapped(reply)
    found: Any = text
    if text.startswith("{"):
        verdict = _json_object(text, {"label"}, forms)
        found = _offered(verdict["label"], labels, forms)
        _check_further(verdict, {"label"}, found, labels)
    return Labels.of([(_offered(found, labels, forms), "")], forms)


def unwrapped(reply: str) -> tuple[str, list[str]]:
    """The reply without a think block before it and without one code fence around it; and which of these it had.

    A reply that is JSON stays as it is: its reasons may hold tags and fences. Byte order marks are dropped.
    """
    text, forms = reply.replace("\ufeff", "").strip(), []
    if not _is_json(text) and (end := _TURN_END.search(text)) and not text.startswith("<|"):
        text = text[: end.start()]
        forms.append(TURN_END)
    fenced = _FENCED.match(text)
    if not _is_json(text) and not (fenced and _is_json(fenced.group(2))):
        if final := _FINAL.match(text):
            text = _FINAL_END.sub("", final.group(1)).strip()
            forms.append(THINK)
        elif thought := _THOUGHT.match(text):
            text = text[thought.end() :].strip()
            forms.append(THINK)
        fenced = None if _is_json(text) else _FENCED.match(text)
    if fenced is not None and (fenced.group(1) not in fenced.group(2) or _is_json(fenced.group(2))):
        text = fenced.group(2).strip()
        forms.append(FENCE)
    return text, forms


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


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


def _json_object(text: str, keys: set[str], forms: list[str]) -> dict[str, Any]:
    try:
        parsed = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, Unusable) else Unusable("not JSON") from None
    return _shaped(parsed, keys, forms)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("a key stands twice")
    return found


def _shaped(found: Any, keys: set[str], forms: list[str]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Unusable("JSON of another shape")
    if not keys <= set(found):
        found = _in_lower_case(found)
        forms.append(OTHER_CASE)
    if not keys <= set(found):
        raise Unusable("JSON of another shape")
    if len(found) > len(keys):
        forms.append(FURTHER_KEY)
    return found


def _in_lower_case(found: dict[str, Any]) -> dict[str, Any]:
    lower = {key.strip().casefold(): value for key, value in found.items()}
    if len(lower) < len(found):
        raise Unusable("a key stands twice")
    return lower


def _labelled(verdict: dict[str, Any], labels: Sequence[str], forms: list[str]) -> Labelled:
    if not isinstance(verdict["why"], str):
        raise Unusable("JSON of another shape")
    label = _offered(verdict["label"], labels, forms)
    _check_further(verdict, {"why", "label"}, label, labels)
    return label, verdict["why"][:_LONGEST_REASON]


def _check_further(found: dict[str, Any], keys: set[str], label: str, labels: Sequence[str]) -> None:
    """Refuse a further key that is a required one in another spelling, or that holds, at any depth, another offered label.

    The offered labels may have a suffix, which such a value need not have.
    """
    for key in found.keys() - keys:
        if key.strip().casefold() in keys:
            raise Unusable("a key stands twice")
        others = [other.casefold() for other in labels if other != label]
        for value in map(str.casefold, _texts(found[key])):
            if value and not label.casefold().startswith(value) and any(other.startswith(value) for other in others):
                raise Unusable("two labels in one verdict")


def _texts(value: Any) -> Iterator[str]:
    """The texts in JSON, stripped."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, str):
            yield held.strip()
        elif isinstance(held, (dict, list)):
            waiting += held.values() if isinstance(held, dict) else held


def _offered(found: Any, labels: Sequence[str], forms: list[str]) -> str:
    """The offered label that `found` is, whatever its case, if it is one alone."""
    if not isinstance(found, str):
        raise Unusable("JSON of another shape")
    if found in labels:
        return found
    same = [label for label in labels if label.casefold() == found.strip().casefold()]
    if len(same) != 1:
        raise Unusable("a label that was not offered")
    forms.append(OTHER_CASE)
    return same[0]
