"""The tables: ours with intervals, paired comparisons, the paper's Tables 1 to 3, and the small overview.

Everything is read from finished evaluations of the preset; a model or metric that was not evaluated is a dash. The paper's tables
show our figure, the paper's and the difference; at miniature scale the questions are other ones, and the note says so.

Command: `python -m eval.tables --preset mini` writes runs/<preset>/tables/*.{md,tex,json} and prints the overview; with `--all`
it prints the long tables too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import base, judging
from eval.comparisons import KINDS, Entry, compare, comparison_name, comparison_table, pairs, trained, verdict
from eval.external.table import build as external_tables
from eval.layout import DASH, Table, percent
from eval.measures import ACCURACY, FORMAT, Measure, measures, measures_of, reward_measures
from eval.results import Result, find, judges_of, paper, places, unfinished
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.files import write_atomic
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

__all__ = [
    "KINDS",
    "build",
    "compare",
    "comparison_table",
    "main_tables",
    "overview",
    "paper_cells",
    "paper_tables",
    "write",
]

COMPARISON_NOTE = (
    "On the same questions (differences in points, means over questions; better or worse if the interval excludes 0):"
)
SHARES = ("truncated", "unresolved", "no_trace")  # of a model's answers
Comparisons = dict[str, dict[str, Entry]]  # name ("grpo-t-vs-fgrpo-greedy") -> metric -> entry


def main_tables(results: Mapping[str, Result], config: Config, interval: str = "plus") -> list[Table]:
    """Per kind of decoding: accuracy by benchmark with average, then faithfulness; one row per model, percent.

    Args:
        interval: how a cell shows its interval, see `layout.percent`.
    """
    out = []
    for kind, words in KINDS.items():
        rows = [r for r in results.values() if kind in r.kinds()]
        if not rows:
            continue
        out.append(_accuracy_table(rows, kind, words, config, interval))
        out.append(_faithfulness_table(rows, kind, words, config, interval))
    return out


def _accuracy_table(rows: Sequence[Result], kind: str, words: str, config: Config, interval: str) -> Table:
    """Accuracy by benchmark, average, and pair accuracy where a benchmark has pairs."""
    names = places(rows, config)
    inside = [n for n in names if n in config.eval.benchmarks]
    outside = [n for n in names if n not in inside]
    pairs = [n for n in names if base.is_paired(n)]
    headings = (
        "accuracy ↑",
        *map(base.title_of, inside),
        "average",
        *map(base.title_of, outside),
        *(f"{base.title_of(n)} pairs" for n in pairs),
    )
    cells = []
    for r in rows:
        own = [percent(r.cell(kind, n, "accuracy"), interval=interval) for n in inside]
        others = [percent(r.cell(kind, n, "accuracy"), interval=interval) for n in outside]
        by_pair = [percent(r.cell(kind, n, "pair_accuracy"), interval=interval) for n in pairs]
        average = percent(r.cell(kind, "average", "accuracy"), interval=interval)
        cells.append((r.label + partial_mark(r, kind, config), *own, average, *others, *by_pair))
    note = " ".join(filter(None, (_interval_note(config, interval), averages_note(rows, kind, config))))
    return Table(f"accuracy-{kind}", f"Accuracy, % ({words})", headings, tuple(cells), note)


def partial_mark(result: Result, kind: str, config: Config) -> str:
    """ " (2 of 7 benchmarks)" beside averages over other benchmarks than those of `eval.benchmarks`; else ""."""
    averaged, configured = set(result.averaged(kind)), set(config.eval.benchmarks)
    if averaged == configured:
        return ""
    return f" ({len(averaged)} of {len(configured)} benchmarks)" if averaged < configured else " (other benchmarks)"


def averages_note(rows: Sequence[Result], kind: str, config: Config) -> str:
    """What the averages are over, where they are not all over the same benchmarks as the table's columns; parts of benchmarks."""
    parts = [
        f"the average of {r.title} is of {', '.join(map(base.title_of, r.averaged(kind)))}"
        for r in rows
        if kind in r.kinds() and partial_mark(r, kind, config)
    ]
    limited = [f"{r.title} took at most {r.limit} questions of each benchmark" for r in rows if r.limit is not None]
    return f"Partial: {'; '.join([*parts, *limited])}." if parts or limited else ""


def _faithfulness_table(rows: Sequence[Result], kind: str, words: str, config: Config, interval: str) -> Table:
    """Every measure on average, and the shares of answers that are truncated, unparsed or without a trace."""
    every = measures()
    cells = []
    for r in rows:
        counts = r.summary[kind]["counts"]
        answered = counts["rollouts"] - counts.get("refused", 0)
        known = [name for name in SHARES if counts.get(name) is not None]
        shares = [{"value": counts[name] / answered} if name in known and answered else None for name in SHARES]
        values = [r.shown(kind, "average", m, _interval_of(m, interval)) for m in every]
        cells.append((r.label + partial_mark(r, kind, config), *values, *map(percent, shares)))
        for name in r.summary[kind]["benchmarks"]:
            if name not in r.averaged(kind):
                values = [r.shown(kind, name, m, _interval_of(m, interval)) for m in every]
                shares_of = [percent(r.cell(kind, name, share)) for share in SHARES]
                cells.append((f"{r.label}: {base.title_of(name)}", *values, *shares_of))
    headings = ("model", *(m.heading for m in every), "truncated", "unparsed", "no trace")
    pooled = ", ".join(m.report.title for m in every if m.report.pooled)
    note = (
        "flip = P(answer ≠ statement | statement wrong); statement = share of true last statements; "
        f"pooled over all questions: {pooled}; the others are means of the benchmarks. "
        "truncated, unparsed and no trace are shares of the requests that the engine answered; "
        "unparsed = no answer that the rules or the judge could read. "
        "no trace = replies without visible reasoning, to which inconsistency does not apply."
    )
    note = " ".join(filter(None, (note, judges_of(rows), averages_note(rows, kind, config))))
    return Table(f"faithfulness-{kind}", f"Faithfulness, % ({words})", headings, tuple(cells), note)


def _interval_of(measure: Measure, interval: str) -> str:
    """Format is a check of the output, not a result: its cell has no interval."""
    return "none" if measure == FORMAT else interval


def _interval_note(config: Config, interval: str) -> str:
    shown = "half the interval after ±; " if interval == "plus" else ""
    return f"{100 * config.eval.confidence:.0f}% bootstrap intervals over questions, {shown}average = plain mean of the benchmarks."


@dataclass(frozen=True)
class Overview:
    """The result in brief: one row per trained model, and one line per comparison of two of them."""

    kind: str
    table: Table
    lines: tuple[str, ...]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([self.table.text(), *(["", COMPARISON_NOTE, *self.lines] if self.lines else [])])

    def markdown(self) -> str:
        """As a Markdown table with a list of comparisons."""
        listed = [COMPARISON_NOTE, "", *(f"- {line}" for line in self.lines)] if self.lines else []
        return "\n".join([self.table.markdown(), *listed]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "table": self.table.to_dict(), "comparisons": list(self.lines)}


def headline_kind(rows: Sequence[Result]) -> str:
    """The decoding of headline figures: "sampled" where every model has sampled answers, else "greedy".

    Sampled answers are what RL trains on, and they show faithfulness where greedy answers are already near the ceiling.
    """
    return "sampled" if rows and all("sampled" in r.kinds() for r in rows) else "greedy"


def overview(results: Mapping[str, Result], config: Config, comparisons: Comparisons) -> Overview:
    """Accuracy and every reward's metric of the trained models (of all models, where none is trained here)."""
    names = trained(results)
    rows = [results[name] for name in names] or list(results.values())
    kind = headline_kind(rows)
    shown = (ACCURACY, *reward_measures())
    cells = [
        (r.label + partial_mark(r, kind, config), *(r.shown(kind, "average", m, "plus") for m in shown)) for r in rows
    ]
    note = f"Means of the benchmarks, ± half the {100 * config.eval.confidence:.0f}% bootstrap interval over questions."
    note = " ".join(filter(None, (note, judges_of(rows), averages_note(rows, kind, config))))
    headings = ("model", *(m.heading for m in shown))
    table = Table("overview", f"Results, % ({KINDS[kind]})", headings, tuple(cells), note)
    lines = []
    for one, other in pairs(results, config):
        entries = comparisons.get(comparison_name(results[one], results[other], kind))
        if entries is not None and one in names:
            lines.append(f"{results[one].title} → {results[other].title}: {_differences(entries, shown)}")
    return Overview(kind, table, tuple(lines))


def _differences(entries: Mapping[str, Entry], shown: Sequence[Measure]) -> str:
    """ "accuracy +1.4 (no clear change), inconsistency +25.2 (worse)"."""
    return ", ".join(
        f"{m.report.title} {100 * entries[m.metric]['difference']['value']:+.1f} ({verdict(entries[m.metric], m)})"
        for m in shown
        if m.metric in entries
    )


def paper_cells(results: Mapping[str, Result], config: Config) -> dict[str, list[dict[str, Any]]]:
    """Tables 1, 2 and 3 as numbers: {table: [{"title", "cells": {column: {"ours", "low", "high", "paper", "difference"}}}]}.

    Percent, and points for the difference; columns are benchmarks and "average" in Table 1, metrics in Tables 2 and 3. None:
    not evaluated.
    """
    reference = paper()
    out: dict[str, list[dict[str, Any]]] = {"table1": [], "table2": [], "table3": []}
    for row in reference["table1"]:
        result = _ours(row, results, config)
        cells = {
            place: _beside(_comparable(result, place, ACCURACY.metric), value)
            for place, value in zip((*reference["columns"], "average"), row[ACCURACY.metric], strict=True)
        }
        out["table1"].append({"title": row["title"], "cells": cells})
    for name in ("table2", "table3"):
        for row in reference[name]:
            result = _ours(row, results, config)
            cells = {
                metric: _beside(_comparable(result, "average", metric), row[metric]) for metric in reference["metrics"]
            }
            out[name].append({"title": row["title"], "cells": cells})
    return out


def _comparable(result: Result | None, place: str, metric: str) -> dict[str, Any] | None:
    """Our greedy cell; None if there is none, or if it averages other benchmarks than the paper's seven, or parts of them."""
    cell = None if result is None else result.cell("greedy", place, metric)
    is_same = result is not None and set(result.averaged("greedy")) == set(paper()["columns"]) and result.limit is None
    return cell if cell is None or place != "average" or is_same else None


def _beside(cell: Mapping[str, Any] | None, reference: float) -> dict[str, float | None]:
    """Our figure with its interval and the paper's, in percent."""
    if cell is None:
        return {"ours": None, "low": None, "high": None, "paper": reference, "difference": None}
    ours, low, high = (None if cell.get(k) is None else 100 * float(cell[k]) for k in ("value", "low", "high"))
    difference = None if ours is None else ours - reference
    return {"ours": ours, "low": low, "high": high, "paper": reference, "difference": difference}


def paper_tables(results: Mapping[str, Result], config: Config) -> list[Table]:
    """Tables 1, 2 and 3 in the paper's layout: ours (greedy) with its interval / the paper's, and the difference."""
    rows = paper_cells(results, config)
    note = "ours ± half the interval / the paper's, percent; in parentheses the difference in points."
    if config.world is not None:
        note = (
            "ours (miniature world: other questions, so only signs can be compared) ± half the interval / the paper's, "
            "percent; in parentheses the difference in points."
        )
    benchmarks = [*(base.benchmark(n).title for n in paper()["columns"]), "average"]
    metrics = [m.heading for m in measures_of(paper()["metrics"])]
    shown = {
        "table1": ("Table 1: accuracy on seven benchmarks", benchmarks),
        "table2": ("Table 2: how the constraints enter (7B)", metrics),
        "table3": ("Table 3: fixed and adaptive multipliers (7B)", metrics),
    }
    return [
        Table(
            name,
            title,
            ("method", *columns),
            tuple((row["title"], *map(_shown, row["cells"].values())) for row in rows[name]),
            note,
        )
        for name, (title, columns) in shown.items()
    ]


def _shown(cell: Mapping[str, float | None]) -> str:
    """ "82.4 ±1.9 / 79.9 (+2.5)"; a dash if not evaluated."""
    if cell["ours"] is None or cell["difference"] is None:
        return f"{DASH} / {cell['paper']:.1f}"
    half = "" if cell["low"] is None or cell["high"] is None else f" ±{(cell['high'] - cell['low']) / 2:.1f}"
    return f"{cell['ours']:.1f}{half} / {cell['paper']:.1f} ({cell['difference']:+.1f})"


def _ours(row: Mapping[str, Any], results: Mapping[str, Result], config: Config) -> Result | None:
    """Our result for a row of the paper: the same model, trained from the same base (the miniature stands in for 7B)."""
    base_model = row.get("base")
    stands_in = config.world is not None and str(base_model).endswith("7B-Instruct")
    if base_model is not None and base_model != config.models.base and not stands_in:
        return None
    return results.get(row["model"])


def write(tables: Sequence[Table], brief: Overview, out: Path, data: Mapping[str, Any]) -> None:
    """One .md and one .tex per table, all.md, overview.md and overview.json, and tables.json with every figure."""
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        write_atomic(out / f"{table.name}.md", table.markdown())
        write_atomic(out / f"{table.name}.tex", table.latex())
    write_atomic(out / "all.md", "\n".join(t.markdown() for t in tables))
    write_atomic(out / "overview.md", brief.markdown())
    write_json(out / "overview.json", brief.to_dict())
    write_json(out / "tables.json", {"tables": {t.name: t.to_dict() for t in tables}, **data})


def build(config: Config, root: str | Path = "runs") -> tuple[list[Table], list[Table], Path]:
    """(the long tables for a terminal, all tables written, their folder). UserError if nothing was evaluated."""
    shown, everything, out, _ = _build(config, root)
    return shown, everything, out


def _build(config: Config, root: str | Path) -> tuple[list[Table], list[Table], Path, Overview]:
    results = find(config, root)
    comparisons: Comparisons = {}
    paired = []
    for kind in KINDS:
        for one, other in pairs(results, config):
            a, b = results[one], results[other]
            entries = compare(a, b, kind, config) if kind in a.kinds() and kind in b.kinds() else {}
            if entries:  # none without a shared question
                comparisons[comparison_name(a, b, kind)] = entries
                paired.append(comparison_table(a, b, kind, entries))
    brief = overview(results, config, comparisons)
    everything = [
        *main_tables(results, config, "range"),
        *paired,
        *paper_tables(results, config),
        *external_tables(results),
        *judging.build(config, root),
    ]
    data = {
        "paper": paper_cells(results, config),
        "comparisons": comparisons,
        "summaries": {name: r.summary for name, r in results.items()},
    }
    out = folder(config, "tables", root)
    write(everything, brief, out, data)
    headline = [t for t in paired if t.name.endswith("-sampled")] or paired
    return [*headline, *main_tables(results, config)], everything, out, brief


def not_shown(config: Config, root: str | Path = "runs") -> list[str]:
    """What a reader of the overview may miss: other finished evaluations, and those that are not finished."""
    results, lines = find(config, root), []
    others = [r.label for name, r in results.items() if name not in trained(results)] if trained(results) else []
    if others:
        lines.append(f"Also evaluated (figures in the report and in all.md below): {'; '.join(others)}.")
    if begun := unfinished(config, root):
        lines.append(
            f"Not finished, so in no table: {', '.join(begun)}. `make eval PRESET={config.preset} MODEL=…` goes on with one."
        )
    return lines


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        shown, _, out, brief = _build(config, args.runs)
        if args.all:
            print("\n\n".join(table.text() for table in shown) + "\n")
        print(brief.text())
        for line in not_shown(config, args.runs):
            print(f"\n{line}")
        report = folder(config, "report", args.runs) / "index.html"
        if report.exists():
            print(f"\nreport: {report} (figures, comparisons, examples)\ntables: {out}")
        else:
            print(f"\ntables: {out}")

    arguments = parser("write the tables, ours and the paper's, from finished evaluations; print the overview")
    arguments.add_argument("--all", action="store_true", help="print the long tables too")
    run(body, arguments)


if __name__ == "__main__":
    main()
