"""What `make plan` assumes: throughput, lengths and hardware, by dotted key, each with its source (configs/plan.yaml)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import yaml

from fgrpo.boxes import PixelBounds, model_size
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown
from fgrpo.policy import backbone
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema import Config

IMAGE, PROMPT = "images.tokens", "lengths.prompt"  # follow from images.pixels and lengths.text, unless they are given
BY_HAND = "--assume"


class Assumptions:
    """Values of configs/plan.yaml by dotted key, each with its source.

    Args:
        changes: assignments such as "sampling.teacher=600", which replace values of the file. `images.tokens` and
            `lengths.prompt` may be given too; otherwise they follow from the image's pixels (Qwen2.5-VL's cell; `with_pixels`: the
            model's).

    Raises:
        UserError: `changes` has an unknown key, or a value that is not a positive number.
    """

    def __init__(self, changes: Iterable[str] = (), path: Path = CONFIGS / "plan.yaml") -> None:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        self._entries = {f"{s}.{key}": dict(entry) for s, entries in sections.items() for key, entry in entries.items()}
        given = {}
        for change in changes:
            key, _, value = change.partition("=")
            if key not in {*self._entries, IMAGE, PROMPT}:
                raise unknown("assumption", key, {*self._entries, IMAGE, PROMPT})
            given[key] = {"value": _positive(key, value), "source": BY_HAND}
        self._entries |= given
        self._entries = self.with_images_of(backbone.default().pixels)._entries

    def with_images_of(self, bounds: PixelBounds) -> Self:
        """A copy with the tokens of the assumed image, resized within `bounds`, and of the prompt with it."""
        changed = copy.copy(self)
        changed._entries = dict(self._entries)
        if not self._is_given(IMAGE):
            side = round(math.sqrt(self["images.pixels"]))
            width, height = model_size((side, side), *bounds)
            source = f"{width} x {height} pixels / {bounds.factor}^2: {side} x {side}, resized within {bounds.min_pixels:,} to {bounds.max_pixels:,}"
            changed._entries[IMAGE] = {"value": width * height // bounds.factor**2, "source": source}
        if not self._is_given(PROMPT):
            value = changed["lengths.text"] + changed[IMAGE]
            changed._entries[PROMPT] = {"value": value, "source": f"lengths.text + {IMAGE}"}
        return changed

    def _is_given(self, key: str) -> bool:
        return self._entries.get(key, {}).get("source") == BY_HAND

    def __getitem__(self, key: str) -> float:
        return float(self._entries[key]["value"])

    def lines(self) -> list[str]:
        """Each assumption with its source."""
        return [f"{key:22} {entry['value']:>8g}  {entry['source']}" for key, entry in self._entries.items()]


def _positive(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"the assumption {key} must be a number, got {text!r}") from error
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"the assumption {key} must be a positive, finite number, got {text!r}")
    return value


def with_pixels(config: Config, assume: Assumptions) -> Assumptions:
    """`assume` with images as the base model's processor and `policy.pixels` make them."""
    return assume.with_images_of(pixel_bounds(config.models.base, config.policy.pixels))
