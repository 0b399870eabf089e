"""A judge task: one question that is put to judges about items of one type, defined in the file of its reward.

A task says how its prompt file is filled in, which labels are allowed and how a reply is parsed. Every backend answers every
task, so that a constraint with a new question needs no edit in this package:

    TASK = JudgeTask("hedging", Path(__file__).parent / "prompts" / "hedging.txt", ("HEDGED", "PLAIN"), render)
    verdicts = await context.judges.ask(TASK, items)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from fgrpo import prompts
from judges.requests import REASONED_LABEL, Call, Labelled, Labels, ReplyFormat, Trusted, fence
from miniworld.scene import Scene

Item = TypeVar("Item")
BoxFrame = Literal["thousand", "model", "unit"]
Rubric = Literal["user", "system"]
LabelForm = Literal["plain", "nonce"]
_DATA_LINE = re.compile(r"\w+:(?: \{\w+\})?|\{\w+\}")  # "question: {question}"
_NONCE_LENGTH = 8


class NoAnswer(Exception):
    """The oracle cannot answer an item, for example because its image is not of the miniature world; says why."""


class Truth(Protocol):
    """What an oracle function may look up."""

    def scenes(self, images: Sequence[str]) -> tuple[Scene, ...]:
        """The scenes of the images at these paths, in order. Raises `NoAnswer` if one of them has no scene."""


def _one(item: Any) -> int:
    return 1


def _no_images(item: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class BlindForm(Generic[Item]):
    """A task without what its item asserts: a judge says what it reads, and code compares (`judges.<role>.blind`).

    Attributes:
        task: the question that is put to the judge instead.
        applies: whether an item can be put that way; the others are put in the plain form.
        read: the plain task's label and reason, from the item and the label that the judge gave.
    """

    task: JudgeTask[Item]
    applies: Callable[[Item], bool]
    read: Callable[[Item, str], Labelled]


@dataclass(frozen=True)
class JudgeTask(Generic[Item]):
    """One question to judges. `Item` is a frozen dataclass with an `id` and everything the question is about.

    Attributes:
        name: unique; names the reply's JSON schema, cached replies and the prompt's hash.
        prompt: the prompt file, a template with `{placeholders}`.
        labels: the allowed labels, or a function of the item where every item has its own.
        render: the values of the placeholders, from the item and the frame of boxes that the judge model reads. Every value
            is untrusted text and is fenced, except `Trusted` ones.
        reply: format of the reply.
        size: number of verdicts on one item.
        images: paths of the item's images, which come before the text.
        split: one item per verdict, for backends configured with `sentence_calls`; None: an item is always one call.
        oracle: the exact labels with reasons, from the miniature world, `size` of them. None: the oracle fails the item.
        record_kind: the task's name in recordings; `name` if empty.
        blind: the form of the question for backends configured with `blind`; None: there is none.
    """

    name: str
    prompt: Path
    labels: tuple[str, ...] | Callable[[Item], tuple[str, ...]]
    render: Callable[[Item, BoxFrame], Mapping[str, str]]
    reply: ReplyFormat = REASONED_LABEL
    size: Callable[[Item], int] = _one
    images: Callable[[Item], tuple[str, ...]] = _no_images
    split: Callable[[Item], list[Item]] | None = None
    oracle: Callable[[Item, Truth], Sequence[Labelled]] | None = None
    record_kind: str = ""
    blind: BlindForm[Item] | None = None

    @property
    def prompt_hash(self) -> str:
        """Short hash of the prompt file, which every verdict carries."""
        return _template(self.prompt)[1]

    def call(
        self, item: Item, frame: BoxFrame = "thousand", *, rubric: Rubric = "user", labels: LabelForm = "plain"
    ) -> Call:
        """The request about one item.

        Args:
            frame: the frame of boxes that the judge model reads (`judges.<role>.box_frame`).
            rubric: "system" makes everything but the data (lines of "name: {placeholder}") the system's message; a template
                without such lines stays one message.
            labels: "nonce" gives each label a suffix that depends on the whole prompt, so no trace can name a label.

        Raises:
            UserError: the prompt file is missing, or has a placeholder that `render` does not fill.
            ValueError: the item is inconsistent in itself (raised by `render`).
        """
        template, prompt_hash = _template(self.prompt)
        fields = {
            key: value if isinstance(value, Trusted) else fence(value)
            for key, value in self.render(item, frame).items()
        }
        instructions, data = _parts(template) if rubric == "system" else ("", template)
        system, text = prompts.render(instructions, **fields), prompts.render(data, **fields)
        allowed = self.labels(item) if callable(self.labels) else self.labels
        size = self.size(item)
        suffix = _suffix(self.name, system, text) if labels == "nonce" else ""
        shown = tuple(label + suffix for label in allowed)
        if suffix:
            note = f'End each label with "{suffix}": {", ".join(json.dumps(label) for label in shown)}.'
            system, text = (f"{system}\n\n{note}", text) if system else (system, f"{text}\n\n{note}")

        def parse(reply: str) -> Labels:
            found = self.reply.parse(reply, shown, size)
            plain = [(label.removesuffix(suffix), why) for label, why in found]
            return Labels.of(plain, getattr(found, "forms", ()))

        return Call(
            self.name,
            text,
            prompt_hash,
            parse,
            self.images(item),
            self.reply.schema(shown, size),
            shown if self.reply.is_choice else (),
            size,
            system,
        )


def _suffix(*parts: str) -> str:
    """A suffix of labels: the same for an equal prompt, so that replies are found again in a cache."""
    return "-" + hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:_NONCE_LENGTH]


@lru_cache(maxsize=64)
def _parts(template: str) -> tuple[str, str]:
    """The instructions and the data of a template: its paragraphs of "name: {placeholder}" lines are the data."""
    paragraphs = template.split("\n\n")
    is_data = [all(_DATA_LINE.fullmatch(line) for line in p.splitlines()) for p in paragraphs]
    if all(is_data) or not any(is_data):
        return "", template
    instructions = [p for p, of_data in zip(paragraphs, is_data, strict=True) if not of_data]
    data = [p for p, of_data in zip(paragraphs, is_data, strict=True) if of_data]
    return "\n\n".join([*instructions, _WHERE]), "\n\n".join(data)


_WHERE = "The pictures, if there are any, and the data are in the user's message."


@lru_cache(maxsize=64)
def _template(path: Path) -> tuple[str, str]:
    """Text and hash of a prompt file."""
    text = prompts.read(str(path), path.parent)
    return text, prompts.digest(text)
