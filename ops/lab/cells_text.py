"""The part of a lab's page on its cells: states, versions of the code, what stopped or failed, and the jobs that cells share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.layout import DASH
from ops.lab import arithmetic, standing, versions
from ops.lab.runner import DONE, Status
from ops.lab.verdict_text import table

Row = Mapping[str, Any]


def section(
    cells: Sequence[Row],
    shared: Mapping[str, Status],
    code: str = "",
    archive: str = "",
    note: str = "",
    further: Sequence[Row] = (),
) -> list[str]:
    """Paragraphs and tables.

    Args:
        cells: the rows of the declared cells.
        shared: {job that cells share: how it stands}.
        code: the commit of the code that writes the page.
        archive: the folder of the published results, as the page links it.
        note: a person's paragraph on the cells.
        further: the rows of further runs.
    """
    states = Counter(cell["state"] for cell in cells)
    odd = [_odd(cell) for cell in cells if (cell["state"] != DONE and cell.get("reason")) or cell.get("earlier")]
    return [
        f"{len(cells)} declared: " + ", ".join(f"{n} {state}" for state, n in states.most_common()) + ".",
        f"Code that wrote this page: {code}." if code else "",
        f"Results as files, a row per cell and per answer: [{archive}]({archive})." if archive else "",
        _made([*cells, *further]),
        note.strip(),
        _cost([*cells, *further], shared),
        "Stopped, failed, damaged and repeated cells:\n\n" + "\n".join(odd) if odd else "",
        _shared(shared),
    ]


def _cost(cells: Sequence[Row], shared: Mapping[str, Status]) -> str:
    own = sum(cell["cpu_seconds"] or 0.0 for cell in cells) / 3600
    if not shared:
        return f"CPU time of all cells, without the jobs that they share: {own:.1f} h." if own else ""
    common = sum(status.cpu_seconds for status in shared.values()) / 3600
    return f"CPU time of all cells: {own:.1f} h; of the jobs below that cells share: {common:.1f} h."


def _odd(cell: Row) -> str:
    reason = f": {cell['reason']}" if cell.get("reason") else ""
    before = f"; earlier attempts: {cell['earlier']}" if cell.get("earlier") else ""
    return f"- {cell['cell']}: {cell['state']}{reason}{before}"


def _made(cells: Sequence[Row]) -> str:
    """What the finished runs were made with: a row per commit, packages, processor and arithmetic."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for cell in cells:
        if cell["state"] == DONE:
            commit = f"`{cell.get('commit') or 'unknown'}`{' with changes' if cell.get('dirty') else ''}"
            key = (
                commit,
                versions.packages(cell) or DASH,
                cell.get(versions.CPU) or DASH,
                cell.get(arithmetic.COLUMN) or DASH,
            )
            groups.setdefault(key, []).append(cell)
    rows = [(*key, _names(group)) for key, group in groups.items()]
    if not rows:
        return ""
    explained = f"What made the finished cells ({DASH}: not recorded):"
    header = ("commit", "packages", "processor", "arithmetic", "cells (seeds)")
    return f"{explained}\n\n{table('made', header, rows, left=5)}"


def _names(cells: Iterable[Row]) -> str:
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        seeds.setdefault(f"{cell['condition']}/{cell['method']}", []).append(cell["seed"])
    return "; ".join(f"{arm} ({', '.join(map(str, sorted(of)))})" for arm, of in seeds.items())


def _shared(shared: Mapping[str, Status]) -> str:
    """Worlds, backbones, chains and anchored models that were started."""
    rows = [
        (
            name,
            status.state,
            status.reason or DASH,
            standing.earlier(status.attempts) or DASH,
            f"{status.cpu_seconds:,.0f}",
        )
        for name, status in shared.items()
    ]
    if not rows:
        return ""
    headings = ("job", "state", "reason", "earlier attempts", "CPU s")
    return f"Jobs that cells share:\n\n{table('shared', headings, rows, left=4)}"
