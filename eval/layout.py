"""A table as data, rendered for the terminal, as Markdown and as LaTeX. Knows nothing about its contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo.output import printable

DASH = "–"
_TEX = {
    **{sign: "\\" + sign for sign in "&%#_${}"},
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "≠": r"$\neq$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    DASH: "--",
    "…": r"\dots{}",
    "×": r"$\times$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


@dataclass(frozen=True)
class Table:
    """Headings and rows of formatted text; the first `left` columns are left-aligned, the others right-aligned."""

    name: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1

    def text(self) -> str:
        """For a terminal, in columns."""
        headings, *rows = [tuple(map(printable, row)) for row in (self.headings, *self.rows)]
        widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]

        def line(cells: Sequence[str]) -> str:
            padded = (
                c.ljust(w) if i < self.left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        body = [line(headings), "  ".join("─" * w for w in widths), *map(line, rows)]
        return printable("\n".join([self.title, *body, *([self.note] if self.note else [])]))

    def markdown(self) -> str:
        """As a Markdown table under a heading."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

        rule = "|" + "|".join("---" if i < self.left else "---:" for i in range(len(self.headings))) + "|"
        parts = [f"## {self.title}", "", line(self.headings), rule, *map(line, self.rows)]
        return "\n".join([*parts, *(["", self.note] if self.note else [])]) + "\n"

    def latex(self) -> str:
        """As a LaTeX tabular with a caption (booktabs)."""
        columns = "l" * self.left + "r" * (len(self.headings) - self.left)
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        head = " & ".join(map(_tex, self.headings)) + r" \\"
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(self.title)}. {_tex(self.note)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
        ]
        return "\n".join([*lines, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "headings": list(self.headings),
            "rows": [list(r) for r in self.rows],
            "note": self.note,
        }


def percent(cell: dict[str, Any] | None, *, interval: str = "none", digits: int = 1) -> str:
    """A cell {"value", "low", "high"} in percent, a dash for None.

    Args:
        interval: "none" gives "88.5", "plus" "88.5 ±2.1" (half the interval), "range" "88.5 [86.4, 90.6]".
        digits: after the point.
    """
    if cell is None:
        return DASH
    value = f"{100 * cell['value']:.{digits}f}"
    low, high = cell.get("low"), cell.get("high")
    if low is None or high is None or interval == "none":
        return value
    if interval == "plus":
        return f"{value} ±{50 * (high - low):.{digits}f}"
    return f"{value} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
