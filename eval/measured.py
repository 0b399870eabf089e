"""The files of `make probe` beside an evaluation: their names, and what was measured for each answer (docs/probes.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgrpo.files import read_items
from fgrpo.runs import require
from fgrpo.types import Score

# A line per answer; the summary; which answers, options and rewards both are of.
LINES, SUMMARY, BELONGS = "probes.jsonl", "probes.json", "probes-of.json"


def stored(folder: Path) -> dict[str, dict[str, float | None]]:
    """{answer's id: {reward: value}} of an evaluation's folder; a value is None where the reward has none.

    Raises:
        UserError: nothing was measured, or a line is damaged.
    """
    path = require(folder / LINES, "probe", check=False)

    def parsed(line: dict[str, Any]) -> tuple[str, dict[str, float | None]]:
        return str(line["id"]), {name: Score.from_dict(score).value for name, score in line["scores"].items()}

    return dict(read_items(path, parsed, "measured answer"))
