"""Prompt files: rendered in one pass, hashed, turned into chat messages.

A template holds `{name}` placeholders. They are replaced in one pass over the template, so text that is put in is never
looked at again: a question that contains "{answer}" stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError, unknown
from fgrpo.types import Sample

FOLDER = Path(__file__).resolve().parent / "prompt_files"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def read(name: str, folder: Path = FOLDER) -> str:
    """The text of a prompt file; `name` is its stem, or a path to a file of the user's own."""
    path = Path(name) if name.endswith(".txt") else folder / f"{name}.txt"
    if not path.is_file():
        raise unknown("prompt", name, (p.stem for p in folder.glob("*.txt")))
    return path.read_text(encoding="utf-8").removesuffix("\n")


def render(template: str, **fields: str) -> str:
    """Put `fields` into `template` in one pass.

    Raises:
        UserError: the template names a placeholder that was not given.
    """

    def put(match: re.Match[str]) -> str:
        try:
            return fields[match.group(1)]
        except KeyError:
            raise UserError(
                f"the prompt has a placeholder {match.group(0)}; known: {', '.join(sorted(fields))}"
            ) from None

    return _PLACEHOLDER.sub(put, template)


def digest(text: str) -> str:
    """Short hash of a prompt, for manifests and verdicts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def options(choices: Sequence[str]) -> str:
    """Choices as lettered lines: "(A) left", "(B) right"."""
    return "\n".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(choices))


def user_text(sample: Sample, template: str) -> str:
    """The user's turn for `sample`; a template may name {question}, {options} and {choices}."""
    return render(
        template, question=sample.question, options=options(sample.choices), choices=", ".join(sample.choices)
    )


def messages(sample: Sample, template: str) -> list[dict[str, Any]]:
    """One user turn in the chat form of transformers: the pictures in order, then the text."""
    pictures: list[dict[str, Any]] = [{"type": "image", "image": path} for path in sample.images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": user_text(sample, template)}]}]
