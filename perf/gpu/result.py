"""What a check found, as JSON: passed, failed with the number, or not applicable with the reason."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["passed", "failed", "timed out", "not applicable"]


class NotApplicable(Exception):
    """A check cannot run here; says what it needs."""


@dataclass
class Result:
    """One check.

    Attributes:
        finding: one line with the number that decided.
        speeds: real tokens per second, by part.
        memory: per kind of process (peak GB measured, GB that `make plan` expects).
        seconds: wall clock of the check, its process' start included.
        cpu_seconds: of its process and of those that it started.
    """

    name: str
    state: State = "passed"
    finding: str = ""
    speeds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def must(self, holds: bool, words: str) -> None:
        """Add `words`, which hold the number, to the finding; the check has failed unless `holds`."""
        if not holds:
            self.state = "failed"
        self.finding = "; ".join(part for part in (self.finding, words if holds else f"NOT {words}") if part)

    def write(self, path: Path) -> None:
        """Store it."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def read(path: Path) -> Result | None:
    """The stored result; None if there is none, or a damaged one."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["memory"] = {name: (float(a), float(b)) for name, (a, b) in stored["memory"].items()}
        return Result(**stored)
    except (OSError, ValueError, KeyError, TypeError):
        return None
