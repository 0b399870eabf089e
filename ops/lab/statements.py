"""Where inconsistency comes from: traces that state nothing about the question, a truth, or something false.

The miniature's oracle finds the last statement of a trace about its question. An answer to a trace without one follows from
nothing, which counts as inconsistent; an answer that differs from a false statement is a flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from eval.layout import DASH
from ops.lab.analysis import Results
from ops.lab.words import table

STATED = {None: "no statement", 1.0: "a true one", 0.0: "a false one"}
HEADINGS = (
    "method", "seeds", "traces without a statement", "right answers to these", "inconsistency from these", "from true statements",
    "from false ones",
)  # fmt: skip


def section(results: Results, kind: str = "sampled") -> list[str]:
    """A table per condition, in percent of the answers; means over seeds, and in brackets the lowest and highest seed."""
    out = []
    for condition in results.lab.conditions:
        rows = []
        for method in results.lab.methods:
            found = [parts(results.answers[cell["cell"]], kind) for cell in results.done(condition, method)]
            seeds = [one for one in found if one is not None]
            if seeds:
                rows.append((results.lab.title_of(method), str(len(seeds)), *_shown(seeds)))
        if rows:
            out += [f"### {condition}, {kind} answers, %", table(f"{condition}-statements", HEADINGS, rows)]
    if not out:
        return []
    explained = (
        "By the oracle's reading of the last statement of each trace about its question. The last three columns add up to the "
        "inconsistency. A flip is an inconsistent answer to a false statement; the second column of figures says how often an answer "
        "is right although its trace states nothing that it could follow from."
    )
    return ["## Where inconsistency comes from", explained, *out]


def parts(answers: Mapping[str, Sequence[Any]], kind: str) -> tuple[float, float | None, float, float, float] | None:
    """Of one cell: share without a statement, right answers among these (None: there are none), inconsistency from each of `STATED`.

    None without an answer of this kind whose consistency was scored.
    """
    columns = (answers[name] for name in ("kind", "statement", "accuracy", "inconsistency"))
    rows = [row[1:] for row in zip(*columns, strict=True) if row[0] == kind and row[3] is not None]
    if not rows:
        return None
    right = [accuracy for stated, accuracy, _ in rows if stated is None]
    sums = [sum(wrong for stated, _, wrong in rows if stated == value) / len(rows) for value in STATED]
    return len(right) / len(rows), fmean(right) if right else None, sums[0], sums[1], sums[2]


def _shown(seeds: Sequence[tuple[float | None, ...]]) -> list[str]:
    out = []
    for column in zip(*seeds, strict=True):
        values = [100 * value for value in column if value is not None]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        out.append(f"{fmean(values):.1f}{spread}" if values else DASH)
    return out
