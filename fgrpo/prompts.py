"""Prompt files: rendered in one pass, hashed, turned into chat messages.

A template holds `{name}` placeholders. One pass over the template replaces them, so inserted text is never expanded
again: a question that contains "{answer}" stays unchanged. `{box}`, `{coordinates}` and `{units}` are filled before (`with_boxes`): they
say how the policy is to write boxes, so that a prompt never asks for another frame than the one that is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo import box_forms
from fgrpo.errors import UserError, unknown
from fgrpo.options import letters
from fgrpo.types import Frame, Sample

if TYPE_CHECKING:
    from fgrpo.schema import Policy

FOLDER = Path(__file__).resolve().parent / "prompt_files"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_BOXES = re.compile(r"\{(?:box|coordinates|units)\}")
_FRAMES: dict[Frame, tuple[str, str]] = {
    "model": ("absolute pixel coordinates", "absolute pixels"),
    "original": ("absolute pixel coordinates", "absolute pixels"),
    "thousand": ("coordinates from 0 to 1000 across the width and the height", "coordinates from 0 to 1000"),
    "unit": ("coordinates from 0 to 1 across the width and the height", "coordinates from 0 to 1"),
}


def read(name: str, *folders: Path) -> str:
    """The text of a prompt file; `name` is its stem, or a path that ends in ".txt".

    Args:
        folders: where it is searched, in this order (default: `FOLDER`).

    Raises:
        UserError: no such prompt (suggests the nearest).
    """
    folders = folders or (FOLDER,)
    paths = [Path(name)] if name.endswith(".txt") else [folder / f"{name}.txt" for folder in folders]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise unknown("prompt", name, {p.stem for folder in folders for p in folder.glob("*.txt")})
    return path.read_text(encoding="utf-8").removesuffix("\n")


def render(template: str, **fields: str) -> str:
    """Put `fields` into `template` in one pass.

    Raises:
        UserError: the template has a placeholder without a field.
    """

    def put(match: re.Match[str]) -> str:
        try:
            return fields[match.group(1)]
        except KeyError:
            raise UserError(
                f"the prompt has an unknown placeholder {match.group(0)}; known: {', '.join(sorted(fields))}"
            ) from None

    return _PLACEHOLDER.sub(put, template)


def with_boxes(template: str, box_tag: str, box_frame: Frame) -> str:
    """A template in which `{box}`, `{coordinates}` and `{units}` are the form and frame of boxes (`policy.box_tag`, `policy.box_frame`)."""
    coordinates, units = _FRAMES[box_frame]
    words = {"{box}": box_forms.example(box_tag), "{coordinates}": coordinates, "{units}": units}
    return _BOXES.sub(lambda match: words[match.group()], template)


def read_for(policy: Policy, name: str) -> str:
    """The prompt file `name` that asks for boxes as `policy` writes them.

    Raises:
        UserError: as `read`.
    """
    return with_boxes(read(name), policy.box_tag, policy.box_frame)


def digest(text: str) -> str:
    """Short hash of a prompt, for manifests and verdicts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def options(choices: Sequence[str]) -> str:
    """Choices as lettered lines: "(A) left", "(B) right"; a choice that is only its letter is not repeated."""
    lettered = zip(letters(len(choices)), choices, strict=True)
    return "\n".join(f"({letter})" if choice == letter else f"({letter}) {choice}" for letter, choice in lettered)


def user_text(sample: Sample, template: str) -> str:
    """The user's turn for `sample`; a template may name {question}, {options} and {choices}."""
    return render(
        template, question=sample.question, options=options(sample.choices), choices=", ".join(sample.choices)
    )


def messages(sample: Sample, template: str) -> list[dict[str, Any]]:
    """One user turn in the chat format of transformers: the images in order, then the text."""
    images: list[dict[str, Any]] = [{"type": "image", "image": path} for path in sample.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": user_text(sample, template)}]}]
