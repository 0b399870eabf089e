"""Which hypotheses a lab got after its first cell had started, and which seeds of their arms had been seen by then.

The seal holds the text of the declaration that the first cell started with, and that of each recorded change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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


def additions(lab: Lab, seal: Mapping[str, Any] | None, cells: Sequence[Mapping[str, Any]]) -> dict[str, Addition]:
    """The later hypotheses by name.

    Args:
        seal: what `ops.lab.declaration.seal` stored.
        cells: rows of cells.parquet.
    """
    if seal is None:
        return {}
    known = _hypotheses(seal)
    found: dict[str, Addition] = {}
    for change in seal["deviations"]:
        now, recorded = _hypotheses(change), str(change["recorded"])
        for name in [name for name in lab.hypotheses if name in now - known]:
            found[name] = Addition(name, recorded, _seen(lab, name, recorded, cells))
        known |= now
    return found


def _hypotheses(declared: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(yaml.safe_load(declared["text"]).get("hypotheses", ()))


def _seen(lab: Lab, name: str, recorded: str, cells: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    hypothesis, moment = lab.hypotheses[name], datetime.fromisoformat(recorded)
    arms = {arm for part in hypothesis.parts for arm in (part.a, part.b)}
    mine = [
        c for c in cells if c["state"] == "done" and c["method"] in arms and c["condition"] in hypothesis.conditions
    ]
    ended = ((c["seed"], datetime.fromisoformat(c["started"]) + timedelta(seconds=c["seconds"] or 0.0)) for c in mine)
    return tuple(sorted({seed for seed, end in ended if end < moment}))
