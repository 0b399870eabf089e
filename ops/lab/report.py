"""The page of a lab, written from its results alone: declaration, state of the cells, verdicts, tables, figures, commands.

`page` returns Markdown. Paragraphs on what a verdict means are a person's (configs/lab/notes/<name>.yaml); everything else is
computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.layout import DASH
from fgrpo.runs import write_json
from ops.lab import cells_text, findings, starts, statements, tables, verdict_text, versions, words
from ops.lab.analysis import Results
from ops.lab.declaration import OF_CELLS, SEAL, Lab
from ops.lab.runner import WAITING, Status
from ops.lab.words import table

COMMIT = 10  # digits of a commit in the list of cells


def page(
    name: str,
    results: Results,
    seal: Mapping[str, Any] | None,
    notes: Mapping[str, str],
    pictures: Mapping[str, str],
    *,
    shared: Mapping[str, Status] | None = None,
    code: str = "",
    archive: str = "",
) -> str:
    """The page as Markdown.

    Args:
        seal: what `ops.lab.declaration.seal` stored; None if no cell has started.
        notes: {hypothesis, or "cells": paragraph}.
        pictures: {figure: path relative to the page}.
        shared, code, archive: as `cells_text.section` takes them.
    """
    lab = results.lab
    found = findings.of(name, results, seal)
    done = sum(cell["state"] == "done" for cell in results.cells)
    parts = [
        f"# Laboratory: {lab.title}",
        f"`make lab-report LAB={name}` writes this page from the results of `make lab LAB={name}`.",
        lab.question,
        _other_starts(lab),
        verdict_text.summary(found, done, len(results.cells)),
        "## Declaration",
        *_declaration(name, lab, seal, [*results.cells, *results.further]),
        "## Cells",
        *cells_text.section(
            results.cells, shared or {}, code, archive, notes.get(OF_CELLS, ""), further=results.further
        ),
        *tables.repeated(results),
        "## Verdicts",
        *verdict_text.sections(name, found, notes),
        "## Means over seeds",
        *tables.means(results),
        *statements.section(results),
        *tables.of_cells(results),
        *tables.probes(results),
        "## Beside the paper",
        *tables.beside_the_paper(results),
        "## Figures",
        *[f"![{key}]({path})" for key, path in pictures.items()],
        "Lines: mean over seeds of the smoothed curves; bands: from the smallest to the largest seed."
        if pictures
        else "No trained cell yet.",
        "## Every cell, and the command that repeats it",
        _repeat(name, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_verdicts(name: str, results: Results, seal: Mapping[str, Any] | None, folder: Path) -> Path:
    """Write verdicts.json, the page's verdicts with every effect, beside the results in `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / findings.FILE, findings.of(name, results, seal).to_dict())
    return folder / findings.FILE


def _other_starts(lab: Lab) -> str:
    """Which trained arms do not start from SFT, by their methods' configurations."""
    lines = [
        f"{words.listed([f'`{arm}`' for arm in arms])} start from the model `{start}` of their seed"
        for start, arms in starts.elsewhere(lab).items()
    ]
    if not lines:
        return ""
    return (
        f"**Not every arm starts from SFT**: {'; '.join(lines)} (`rl.start`), all other trained arms from SFT's checkpoint. Comparisons between arms of different starts "
        f'are marked "{verdict_text.DIFFERENT}"; they mix the effect of the method with that of the start.'
    )


def _declaration(name: str, lab: Lab, seal: Mapping[str, Any] | None, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    if seal is None:
        out.append("No cell has started, so no commit is bound to the results yet.")
    elif seal["commit"] and seal["committed"] and _moment(seal["date"]) <= _moment(seal["started"]):
        out.append(f"Declared by commit `{seal['commit']}` ({seal['date']}); the first cell started {seal['started']}.")
    elif seal["commit"] and seal["committed"]:
        out.append(
            f"Declared by commit `{seal['commit']}` of {seal['date']}; by the clocks, the first cell started before it ({seal['started']})."
        )
    else:
        out.append(
            f"**configs/lab/{name}.yaml was not committed when the first cell started ({seal['started']}): these results were not declared in advance.**"
        )
    for change in (seal or {}).get("deviations", ()):
        out.append(
            f"- **Deviation**, recorded {change['recorded']} (commit `{change['commit']}`{'' if change['committed'] else ', not committed'}): {change['reason']}"
        )
    named = [one["commit"] for one in (seal or {}).get("deviations", ())] + [(seal or {}).get("commit")]
    if gone := versions.unknown_commits([*named, *(cell.get("commit") for cell in cells)]):
        out.append(
            f"Not in the history of the repository that wrote this page: {', '.join(f'`{commit[:COMMIT]}`' for commit in gone)}. "
            f"{SEAL} holds the text of the declaration then and after each deviation, with its SHA-256."
        )
    out.append(
        f"Primary metric: {lab.primary.metric} ({lab.primary.kind} answers). Stopping rule: {lab.stopping.rule.strip()}"
    )
    out.append("\n".join(f"- `{key}`: {condition.about.strip()}" for key, condition in lab.conditions.items()))
    out.append(
        f"A cell's seed sets curation, tree search, SFT, the order of prompts, sampling in RL and sampling in evaluation. The world (pictures, "
        f"training questions, benchmarks) has seed {lab.world_seed} in all cells, so seeds and methods answer the same questions."
    )
    return out


def _moment(text: object) -> datetime:
    return datetime.fromisoformat(str(text))


def _repeat(name: str, results: Results) -> str:
    primary = results.lab.primary
    column = f"{primary.kind}/{primary.metric}"
    rows, waiting = [], dict[str, list[int]]()
    for cell in results.cells:
        if cell["state"] == WAITING:
            waiting.setdefault(f"{cell['condition']}/{cell['method']}", []).append(cell["seed"])
            continue
        value = cell.get(column)
        cost = DASH if cell["cpu_seconds"] is None else f"{cell['cpu_seconds']:,.0f}"
        figures = (DASH if value is None else f"{100 * value:.2f}", cost)
        rows.append((cell["cell"], cell["state"], _commit(cell), *figures))
    words = (
        f"`make lab LAB={name} CELL=<cell> RUNS=again` runs one cell anew, with what it needs, prints its commands, and then its figures to "
        "the last digit. They repeat on the versions and the arithmetic that made them (see Cells)."
    )
    started = table("cells", ("cell", "state", "commit", f"{column}, %", "CPU s"), rows, left=3)
    left = "; ".join(f"{arm} (seeds {', '.join(map(str, sorted(seeds)))})" for arm, seeds in waiting.items())
    return "\n\n".join([words, *([started] if rows else []), *([f"Not started: {left}."] if left else [])])


def _commit(cell: Mapping[str, Any]) -> str:
    if not cell.get("commit"):
        return DASH
    return f"`{cell['commit'][:COMMIT]}`{' with changes' if cell.get('dirty') else ''}"


def relative(pictures: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """The figures' paths as a page in `folder` links them."""
    return {key: path.relative_to(folder).as_posix() for key, path in pictures.items()}
