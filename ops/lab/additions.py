"""Which hypotheses a lab got after its first cell had started, and which seeds of their arms had been seen by then.

The seal names the commit that declared the lab; git knows which hypotheses the file had there and at each recorded change.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from ops.lab.declaration import Lab


@dataclass(frozen=True)
class Addition:
    """A hypothesis that a recorded change added, and the seeds of its arms with a finished cell at that time."""

    hypothesis: str
    recorded: str
    seen: tuple[int, ...]

    def words(self) -> str:
        """For a table."""
        seeds = ", ".join(map(str, self.seen))
        return f"added after seed{'s' if len(self.seen) > 1 else ''} {seeds}" if self.seen else "added later"


def hypotheses_at(commit: str, file: Path) -> frozenset[str] | None:
    """The hypotheses of a declaration at a commit; None if git does not know it (a copy without history)."""
    command = ["git", "-C", str(file.parent), "show", f"{commit}:./{file.name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(yaml.safe_load(done.stdout)["hypotheses"]) if done.returncode == 0 else None


def additions(
    lab: Lab, seal: Mapping[str, Any] | None, file: Path, cells: Sequence[Mapping[str, Any]]
) -> dict[str, Addition] | None:
    """The later hypotheses by name; None if there are recorded changes and git cannot say what they added.

    Args:
        seal: what `ops.lab.declaration.seal` stored.
        file: the declaration.
        cells: rows of cells.parquet.
    """
    changes = [] if seal is None else list(seal["deviations"])
    if seal is None or not changes:
        return {}
    known = hypotheses_at(str(seal["commit"]), file) if seal["committed"] else None
    found: dict[str, Addition] = {}
    for change in changes:
        now = hypotheses_at(str(change["commit"]), file) if change["committed"] else None
        if known is None or now is None:
            return None
        for name in [name for name in lab.hypotheses if name in now - known]:
            found[name] = Addition(name, str(change["recorded"]), _seen(lab, name, str(change["recorded"]), cells))
        known |= now
    return found


def _seen(lab: Lab, name: str, recorded: str, cells: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    hypothesis, moment = lab.hypotheses[name], datetime.fromisoformat(recorded)
    arms = {arm for part in hypothesis.parts for arm in (part.a, part.b)}
    mine = [
        c for c in cells if c["state"] == "done" and c["method"] in arms and c["condition"] in hypothesis.conditions
    ]
    ended = ((c["seed"], datetime.fromisoformat(c["started"]) + timedelta(seconds=c["seconds"] or 0.0)) for c in mine)
    return tuple(sorted({seed for seed, end in ended if end < moment}))
