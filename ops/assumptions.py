"""What `make plan` assumes: throughput, lengths, prices of hardware, by dotted key with a source each (configs/plan.yaml)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown


class Assumptions:
    """Values of configs/plan.yaml by dotted key, each with its source.

    Raises:
        UserError: an unknown key among `changes`, or a value that is no number.
    """

    def __init__(self, changes: Iterable[str] = (), path: Path = CONFIGS / "plan.yaml") -> None:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        self._held = {f"{s}.{key}": dict(entry) for s, entries in sections.items() for key, entry in entries.items()}
        for change in changes:
            key, _, value = change.partition("=")
            if key not in self._held:
                raise unknown("assumption", key, self._held)
            try:
                self._held[key] = {"value": float(value), "source": "--assume"}
            except ValueError as error:
                raise UserError(f"the assumption {key} is a number, not {value!r}") from error

    def __getitem__(self, key: str) -> float:
        return float(self._held[key]["value"])

    def lines(self) -> list[str]:
        """Each assumption with its source."""
        return [f"{key:22} {entry['value']:>8g}  {entry['source']}" for key, entry in self._held.items()]
