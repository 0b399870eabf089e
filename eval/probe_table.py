"""The table of what `make probe` measured on evaluated models: means with intervals, and what has no score and why.

Reads probes.json beside each evaluation (written by ops.policy_probes), and probes-of.json, which says which answers it is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.layout import DASH, Table
from eval.measured import BELONGS, SUMMARY
from eval.results import Result
from fgrpo.errors import UserError
from fgrpo.hashing import Hashes
from fgrpo.sealed import read_sealed
from rewards.probes import MEASURED

AGAIN = "run `make probe` for this model again"
HEADINGS = ("model", "score", "mean", "scored", "not applicable", "failed")
NOTE = (
    "Scores of right and wrong answers, with intervals over questions (docs/probes.md). Margins: 0.5 where the boxes matter no "
    "more than other regions; the control margin is near it whatever the policy, or the measurement is at fault. Drops, in nats a "
    "token: of the log-probability where the boxes or the control regions are blanked; the latter is high where any change of the "
    "image disturbs the policy. Vision dependence is in nats. Not applicable: number of answers by cause."
)


def probe_table(shown: Sequence[Result]) -> tuple[Table | None, list[str]]:
    """The table, None where nothing was measured; and a sentence for each model whose file is of other answers.

    Raises:
        UserError: a file is damaged.
    """
    rows: list[tuple[str, ...]] = []
    notes = []
    for result in shown:
        if not (result.path / SUMMARY).is_file():
            continue
        if not _is_current(result):
            notes.append(f"{result.title}: {SUMMARY} is of other answers and is not shown; {AGAIN}.")
            continue
        try:
            summary = json.loads((result.path / SUMMARY).read_text(encoding="utf-8"))
            title = f"{result.title} ({summary['answers']} {summary['kind']} answers)"
            cells = sorted(summary["metrics"].items(), key=_order)
            rows += [_row(title if n == 0 else "", metric, cell) for n, (metric, cell) in enumerate(cells)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{result.path / SUMMARY} is damaged ({error!r}); {AGAIN}") from error
    if not rows:
        return None, notes
    return Table("probes", "Measured on the policy", HEADINGS, tuple(rows), NOTE, left=2), notes


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    """The rewards in their own order, each before its further numbers."""
    reward = item[0].partition("/")[0]
    return MEASURED.index(reward) if reward in MEASURED else len(MEASURED), item[0]


def _row(title: str, metric: str, cell: Mapping[str, Any]) -> tuple[str, ...]:
    """One metric; "<reward>/<key>" is a further number of that reward's scores."""
    reward, _, key = (part.replace("_", " ") for part in metric.partition("/"))
    mean = DASH if cell["mean"] is None else f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    causes = ", ".join(f"{cause.replace('_', ' ')} {count}" for cause, count in cell["not_applicable"].items())
    return title, f"{reward}: {key}" if key else reward, mean, str(cell["n"]), causes or DASH, str(cell["failed"])


def _is_current(result: Result) -> bool:
    """Whether the file is of the stored answers."""
    try:
        of = read_sealed(result.path / BELONGS)["generations"]
    except (OSError, ValueError, KeyError):  # none, or a damaged one
        return False
    return bool(of == Hashes().of_file(result.path / "generations.jsonl"))
