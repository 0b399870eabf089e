"""What `make plan` assumes: throughput, lengths and hardware, by dotted key, each with its source (configs/plan.yaml)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import yaml

from fgrpo.boxes import PixelBounds
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown


class Assumptions:
    """Values of configs/plan.yaml by dotted key, each with its source.

    Args:
        changes: assignments such as "sampling.teacher=600", which replace values of the file.

    Raises:
        UserError: `changes` has an unknown key, or a value that is not a number.
    """

    def __init__(self, changes: Iterable[str] = (), path: Path = CONFIGS / "plan.yaml") -> None:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        self._entries = {f"{s}.{key}": dict(entry) for s, entries in sections.items() for key, entry in entries.items()}
        for change in changes:
            key, _, value = change.partition("=")
            if key not in self._entries:
                raise unknown("assumption", key, self._entries)
            try:
                self._entries[key] = {"value": float(value), "source": "--assume"}
            except ValueError as error:
                raise UserError(f"the assumption {key} must be a number, got {value!r}") from error

    def with_images_of(self, bounds: PixelBounds) -> Self:
        """A copy in which an image takes at least and at most the tokens of `bounds`, and a prompt as many more or less."""
        changed = copy.copy(self)
        before, cell = self["images.tokens"], bounds.factor**2
        after = min(max(before, math.ceil(bounds.min_pixels / cell)), bounds.max_pixels // cell)
        if after != before:
            source = f"policy.pixels: {bounds.min_pixels:,} to {bounds.max_pixels:,} pixels of an image"
            values = {"images.tokens": after, "lengths.prompt": self["lengths.prompt"] + after - before}
            changed._entries = self._entries | {key: {"value": v, "source": source} for key, v in values.items()}
        return changed

    def __getitem__(self, key: str) -> float:
        return float(self._entries[key]["value"])

    def lines(self) -> list[str]:
        """Each assumption with its source."""
        return [f"{key:22} {entry['value']:>8g}  {entry['source']}" for key, entry in self._entries.items()]
