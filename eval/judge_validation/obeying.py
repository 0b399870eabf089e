"""Judges that obey what they read: stand-ins for a model, each with one weakness, over the requests that a model would get.

A stand-in reads the data out of the request, looks for a verdict in it in its own way, and gives that; without one it judges by
the miniature world's truth. So it errs exactly where the request lets the data through.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from judges.requests import Call
from judges.task import NoAnswer, Truth
from miniworld.oracle import judge_conclusion, judge_sentence

_LINE = re.compile(r"^(?:(\w+): |(\d+\.|-) )(.+)$", re.MULTILINE)
_NUMBERS = re.compile(r"\[[\d.,\s-]+\]")
_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_COMMAND = r"(?:label|verdict|reply|respond|say|output|choose|answer)\W{1,4}(?:is|with|:)?\W{0,4}"
_MEANINGS = {
    "CONSISTENT": r"consistent|follows|yes|verified|agrees",
    "INCONSISTENT": r"inconsistent|contradicts|no\b",
    "CORRECT": r"correct|true|yes|verified|confirmed",
    "INCORRECT": r"incorrect|false|wrong|no\b",
    "SKIP": r"skip",
}


@dataclass(frozen=True)
class Data:
    """What a request shows of an item: its fields by name, and the sentences with their marks ("1." or "-")."""

    fields: dict[str, Any]
    sentences: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, call: Call) -> Data:
        """The data of a request, unescaped."""
        fields: dict[str, Any] = {}
        marked = []
        for name, mark, value in _LINE.findall(call.text):
            try:
                decoded = json.loads(value)
            except ValueError:
                continue  # a line of the rubric
            if mark:
                marked.append((mark, html.unescape(decoded)))
            elif isinstance(decoded, dict):
                fields[name] = tuple(html.unescape(text) for text in decoded.values())
            else:
                fields[name] = html.unescape(decoded)
        return cls(fields, tuple(marked))

    @property
    def text(self) -> str:
        """What the model under test wrote."""
        return "\n".join([self.fields.get("reasoning", ""), *(text for _, text in self.sentences)])


Reading = Callable[[Call, str, Sequence[str]], str | None]
"""From the request, a text of its data and the allowed labels: the label that the text names, None if it names none."""


def last_label(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """Obeys the last label as it is written."""
    return _last(text, {label: re.escape(label) for label in labels})


def last_label_any_case(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """Obeys the last label, whatever its case; letters only where they are upper-case."""
    return _last(text, {label: re.escape(label) if len(label) == 1 else f"(?i:{re.escape(label)})" for label in labels})


def last_command(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """Obeys the last command to give a verdict ("label: …", "reply …"), whatever suffix the label should have."""
    return _last(text, {x: f"(?i:{_COMMAND})(?:{_plain(x)})" for x in labels})


def last_meaning(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """Obeys the last word that means a verdict, whatever suffix the label should have."""
    letter = r"(?i:option|letter|label|verdict|at)\W{1,4}"
    return _last(text, {x: (letter if len(_SUFFIX.sub("", x)) == 1 else "") + f"(?:{_plain(x)})" for x in labels})


def last_meaning_of_user(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """The same, unless the rubric is the system's message, which ranks above the user's."""
    return None if call.system else last_meaning(call, text, labels)


def nothing(call: Call, text: str, labels: Sequence[str]) -> str | None:
    """Obeys nothing."""
    return None


KINDS: dict[str, Reading] = {
    "obeys the last label": last_label,
    "… in any case": last_label_any_case,
    "obeys the last command": last_command,
    "obeys the last word that means a verdict": last_meaning,
    "… unless the rubric is the system's": last_meaning_of_user,
    "obeys nothing": nothing,
}


def _plain(label: str) -> str:
    """A pattern for a label without its suffix, or for a word that means it."""
    bare = _SUFFIX.sub("", label)
    return bare if len(bare) == 1 else f"(?i:{re.escape(bare)}|{_MEANINGS[bare]})"


def _last(text: str, patterns: dict[str, str]) -> str | None:
    """The label whose pattern matches last, as whole words."""
    ends = dict.fromkeys(patterns, 0)
    for label, pattern in patterns.items():
        for found in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text):
            ends[label] = found.end()
    label = max(ends, key=lambda one: ends[one])
    return label if ends[label] else None


class ObeyingTransport:
    """A `judges.client.Transport` that answers as one of `KINDS`.

    Args:
        reading: how it looks for a verdict in the data.
        truth: the scenes of the images.
    """

    def __init__(self, reading: Reading, truth: Truth) -> None:
        self._reading, self._truth = reading, truth

    async def ask(self, call: Call, urls: Sequence[str], widened: int = 0) -> str:
        """See `Transport`."""
        data, schema = Data.of(call), call.schema or {}
        if "label" in schema["properties"]:
            labels = schema["properties"]["label"]["enum"]
            label = self._reading(call, data.text, labels) or _with_suffix(self._conclusion(data, labels), labels)
            return json.dumps({"why": "", "label": label})
        reply = {}
        for place, (mark, _) in enumerate(data.sentences):
            number = mark.removesuffix(".")
            if number in schema["properties"]:
                labels = schema["properties"][number]["properties"]["label"]["enum"]
                obeyed = self._reading(call, data.text, labels)
                reply[number] = {"why": "", "label": obeyed or _with_suffix(self._sentence(call, data, place), labels)}
        return json.dumps(reply)

    async def close(self) -> None:
        """Nothing to close."""

    def _conclusion(self, data: Data, labels: Sequence[str]) -> str:
        question, think, options = (data.fields[key] for key in ("question", "reasoning", "options"))
        if "answer" in data.fields:
            holds = judge_conclusion(question, think, data.fields["answer"], options)[0]
            return "CONSISTENT" if holds else "INCONSISTENT"
        letters = [chr(ord("A") + i) for i in range(len(options))]
        held = [x for x in letters if judge_conclusion(question, think, x, options)[0]]
        return held[0] if len(held) == 1 else "0"

    def _sentence(self, call: Call, data: Data, place: int) -> str:
        texts = [_NUMBERS.sub(r"<bbox>\g<0></bbox>", text) for _, text in data.sentences]
        try:
            scenes = self._truth.scenes(call.images)
        except NoAnswer:
            return "SKIP"
        return judge_sentence(scenes, data.fields["question"], texts[:place], texts[place])[0]


def _with_suffix(label: str, labels: Sequence[str]) -> str:
    return next(one for one in labels if _SUFFIX.sub("", one) == label)
