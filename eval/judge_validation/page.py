"""Results of `eval.judge_validation.run` as judge_validation.json and a Markdown page; a section with the same title is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.sealed import read_sealed, write_sealed

NAME = "judge_validation"
HEAD = """# Validation of judges

Cohen's kappa with its bootstrap interval (whole rollouts resampled), error rates with Wilson intervals. What failed, was not
applicable, or was decided without a judge is in no figure and is listed as left out.
"""


def add(folder: Path, sections: Sequence[dict[str, Any]]) -> str:
    """Add `sections` to the folder's judge_validation.json and .md; returns the page of these sections alone.

    Raises:
        UserError: the existing JSON file cannot be read.
    """
    path = folder / f"{NAME}.json"
    sections_by_title: dict[str, dict[str, Any]] = {}
    if path.is_file():
        try:
            sections_by_title = {section["title"]: section for section in read_sealed(path)["sections"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}); delete it, then rerun") from error
    sections_by_title |= {section["title"]: section for section in sections}
    write_sealed(path, {"sections": list(sections_by_title.values())})
    (folder / f"{NAME}.md").write_text("\n".join([HEAD, *map(page, sections_by_title.values())]), encoding="utf-8")
    return "\n".join(map(page, sections))


def page(section: dict[str, Any]) -> str:
    """One section as Markdown."""
    lines = [f"## {_cell(section['title'])}", ""]
    if "model" in section:
        prompts = ", ".join(f"{k} {v[:8]}" for k, v in section["prompts"].items())
        lines += [
            f"Judge {section['judge']} ({_cell(section['model'])}" + (f"; prompts {prompts})." if prompts else ")."),
            "",
        ]
    for agreement in section.get("agreements", ()):
        lines += _agreement(agreement)
    for role, rates in section.get("errors", {}).items():
        lines += _errors(role, rates)
    dropped = [f"{reason}: {count}" for reason, count in section.get("dropped", {}).items()]
    if dropped:
        lines += ["Not used: " + ", ".join(dropped) + ".", ""]
    return "\n".join(lines)


def _agreement(a: dict[str, Any]) -> list[str]:
    if not a["n"]:
        shown = "nothing was rated by both"
    elif a["kappa"] is None:
        shown = f"agreement {_percent(a['agreement'])}; kappa is not defined, since both used one same label"
    else:
        interval = f" [{a['low']:.3f}, {a['high']:.3f}]" if a["low"] is not None else ""
        shown = f"kappa {a['kappa']:.3f}{interval}, agreement {_percent(a['agreement'])}"
    lines = [f"**{a['role']}**, {a['n']} ratings in {a['clusters']} rollouts: {shown}.", ""]
    if a["n"]:
        first, second = _cell(a["first"]), _cell(a["second"])
        lines += table(
            [f"{first} ↓ {second} →", *a["labels"]], [[x, *r] for x, r in zip(a["labels"], a["confusion"], strict=True)]
        )
    left_out = [f"{_cell(reason)}: {count}" for reason, count in a["left_out"].items()]
    return [*lines, "Left out: " + ", ".join(left_out) + ".", ""] if left_out else lines


def _errors(role: str, rates: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for r in rates:
        interval = f"{100 * r['low']:.1f} – {100 * r['high']:.1f}" if r["n"] else "–"
        labels = ", ".join(f"{label} {count}" for label, count in r["labels"].items())
        rows.append([_cell(r["kind"]), r["n"], r["wrong"], _percent(r["rate"]), interval, r["failed"], labels])
    head = ["kind", "n", "wrong", "error rate", "interval", "failed", "labels"]
    return [f"{role}, by kind:", "", *table(head, rows)]


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table, with an empty line after it."""
    rule = "|" + "---|" * len(head)
    first, *others = ("| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows))
    return [first, rule, *others, ""]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _cell(text: object) -> str:
    """Text of a file or a model, escaped so that it stays one cell."""
    return " ".join(str(text).replace("|", "\\|").split())
