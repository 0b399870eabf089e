"""The tables: ours with intervals, before and after RL, the two methods against each other, and the paper's Tables 1 to 3.

Everything is read from finished evaluations of the preset; what was not evaluated is a dash. In the paper's tables our figure
stands beside the paper's and the difference; at miniature scale the questions are other ones, and the note says so.

Command: `python -m eval.tables --preset mini` prints the main table and writes runs/<preset>/tables/*.{md,tex,json}.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import base, judging, metrics
from eval.layout import DASH, Table, percent
from eval.results import Result, find, paper
from eval.summary import HIGHER_IS_BETTER, value_of
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

FAITHFUL = {
    "inconsistency": "inconsistency ↓",
    "flip": "flip ↓",
    "semantic": "semantic ↑",
    "spatial": "spatial ↑",
    "statement": "statement ↑",
}
COMPARED = {"accuracy": "accuracy", **FAITHFUL}
PAIRS = (
    *(("backbone-cot", "sft"), ("sft", "grpo-t"), ("sft", "fgrpo"), ("grpo-t", "fgrpo")),
    *((other, "fgrpo") for other in ("grpo-additive", "grpo-multiplicative", "fgrpo-consistency", "fgrpo-fixed")),
)
KINDS = {"greedy": "greedy answers", "sampled": "sampled answers, temperature 1"}


def main_tables(results: Mapping[str, Result], config: Config, interval: str = "plus") -> list[Table]:
    """Per kind of decoding: accuracy by benchmark with average, then faithfulness; one row a model, percent."""
    out = []
    for kind, words in KINDS.items():
        rows = [r for r in results.values() if kind in r.kinds()]
        if not rows:
            continue
        out.append(_accuracy_table(rows, kind, words, config, interval))
        out.append(_faithfulness_table(rows, kind, words, interval))
    return out


def _accuracy_table(rows: Sequence[Result], kind: str, words: str, config: Config, interval: str) -> Table:
    """Accuracy by benchmark, average, and pair accuracy where a benchmark has pairs."""
    names = config.eval.benchmarks
    pairs = [n for n in names if base.benchmark(n).paired]
    titles = [base.benchmark(n).title for n in names]
    headings = ("accuracy ↑", *titles, "average", *(f"{base.benchmark(n).title} pairs" for n in pairs))
    cells = []
    for r in rows:
        by_question = [percent(r.cell(kind, n, "accuracy"), interval=interval) for n in names]
        by_pair = [percent(r.cell(kind, n, "pair_accuracy"), interval=interval) for n in pairs]
        average = r.cell(kind, "average", "accuracy")
        of = "" if average is None or _is_whole(average, names) else f" (of {average.get('benchmarks')})"
        cells.append((r.title, *by_question, percent(average, interval=interval) + of, *by_pair))
    return Table(f"accuracy-{kind}", f"Accuracy, % ({words})", headings, tuple(cells), _interval_note(config, interval))


def _is_whole(average: Mapping[str, Any], benchmarks: Sequence[str]) -> bool:
    """Whether an average is that of all the benchmarks, and so comparable with others."""
    return int(average.get("benchmarks", len(benchmarks))) == len(benchmarks)


def _faithfulness_table(rows: Sequence[Result], kind: str, words: str, interval: str) -> Table:
    """Faithfulness on average, and what share of the answers was well formed, cut off, or could not be read."""
    cells = []
    for r in rows:
        counts = r.summary[kind]["counts"]
        shares = [{"value": counts[name] / counts["rollouts"]} for name in ("truncated", "unresolved")]
        values = [percent(r.cell(kind, "average", m), interval=interval) for m in ("accuracy", *FAITHFUL)]
        cells.append((r.title, *values, percent(r.cell(kind, "average", "format")), *map(percent, shares)))
    headings = ("", "accuracy ↑", *FAITHFUL.values(), "format ↑", "cut off", "no answer read")
    note = (
        "flip = P(answer ≠ statement | statement wrong); statement = share of true last statements; "
        "both pooled over all questions, the rest means of the benchmarks."
    )
    return Table(f"faithfulness-{kind}", f"Faithfulness, % ({words})", headings, tuple(cells), note)


def _interval_note(config: Config, interval: str) -> str:
    shown = "half the interval after ±; " if interval == "plus" else ""
    return f"{100 * config.eval.confidence:.0f}% bootstrap intervals over questions, {shown}average = plain mean of the benchmarks."


def compare(a: Result, b: Result, kind: str, config: Config) -> dict[str, dict[str, Any]]:
    """Paired comparison on the same questions, by metric: both means, difference with interval, McNemar for 0/1 scores.

    Differences are means over questions (not over benchmarks), b − a; `flipped` lists the questions that changed.
    """
    first, second = ({r.id: r for r in result.records() if r.meta["kind"] == kind} for result in (a, b))
    shared = [i for i in first if i in second]
    out = {}
    for metric in COMPARED:
        left, right = ([value_of(side[i], metric) for i in shared] for side in (first, second))
        clusters = [first[i].meta["group"] for i in shared]
        gap = metrics.paired_bootstrap(
            left, right, samples=config.eval.bootstrap_samples, confidence=config.eval.confidence, clusters=clusters
        )
        if gap is None:
            continue
        both = [(x, y, i) for x, y, i in zip(left, right, shared, strict=True) if x is not None and y is not None]
        entry: dict[str, Any] = {
            "n": len(both),
            "a": metrics.mean(x for x, _, _ in both),
            "b": metrics.mean(y for _, y, _ in both),
            "difference": {"value": gap[0], "low": gap[1], "high": gap[2]},
        }
        if metric in ("accuracy", "inconsistency"):
            test = metrics.mcnemar(left, right)
            entry["mcnemar"] = {"only_a": test.only_a, "only_b": test.only_b, "p": test.p}
            entry["flipped"] = [i for x, y, i in both if x != y]
        out[metric] = entry
    return out


def comparison_table(a: Result, b: Result, kind: str, found: Mapping[str, dict[str, Any]]) -> Table:
    """One line a metric: a → b, difference with interval, discordant questions and p."""
    rows = []
    for metric, entry in found.items():
        gap = entry["difference"]
        test = entry.get("mcnemar")
        better = (gap["value"] > 0) == HIGHER_IS_BETTER[metric]
        clear = gap["low"] > 0 or gap["high"] < 0
        rows.append(
            (
                COMPARED[metric],
                f"{100 * entry['a']:.1f} → {100 * entry['b']:.1f}",
                f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]",
                "no clear change" if not clear else "better" if better else "worse",
                DASH if test is None else f"{test['only_a']} / {test['only_b']}",
                DASH if test is None else f"{test['p']:.2g}",
                str(entry["n"]),
            )
        )
    headings = ("metric", f"{a.title} → {b.title}", "difference", "", "only first / second", "McNemar p", "n")
    note = (
        "The same questions, paired; means over questions, not over benchmarks; n leaves out those without the score in one of the "
        "two (flip needs a wrong statement in both). McNemar's test takes answers as independent: where several are to one "
        "question (sampled answers, both orders of SAT-Real) the interval counts, which resamples questions."
    )
    name = f"{a.name}-vs-{b.name}-{kind}"
    return Table(name, f"{a.title} against {b.title} ({KINDS[kind]})", headings, tuple(rows), note)


def paper_cells(results: Mapping[str, Result], config: Config) -> dict[str, list[dict[str, Any]]]:
    """Tables 1, 2 and 3 as numbers: {table: [{"title", "cells": {column: {"ours", "low", "high", "paper", "difference"}}}]}.

    Percent, and points for the difference; columns are benchmarks and "average" in Table 1, metrics in Tables 2 and 3. What
    was not evaluated is None.
    """
    reference = paper()
    out: dict[str, list[dict[str, Any]]] = {"table1": [], "table2": [], "table3": []}
    for row in reference["table1"]:
        result = _ours(row, results, config)
        cells = {
            place: _beside(_comparable(result, place, "accuracy"), value)
            for place, value in zip((*reference["columns"], "average"), row["accuracy"], strict=True)
        }
        out["table1"].append({"title": row["title"], "cells": cells})
    for name in ("table2", "table3"):
        for row in reference[name]:
            result = _ours(row, results, config)
            cells = {
                metric: _beside(_comparable(result, "average", metric), row[metric])
                for metric in ("accuracy", "inconsistency")
            }
            out[name].append({"title": row["title"], "cells": cells})
    return out


def _comparable(result: Result | None, place: str, metric: str) -> dict[str, Any] | None:
    """Our greedy cell, if there is one; an average of fewer benchmarks than the paper's seven is none."""
    cell = None if result is None else result.cell("greedy", place, metric)
    return cell if cell is None or place != "average" or _is_whole(cell, paper()["columns"]) else None


def _beside(cell: Mapping[str, Any] | None, reference: float) -> dict[str, float | None]:
    """Our figure with its interval beside the paper's, in percent."""
    if cell is None:
        return {"ours": None, "low": None, "high": None, "paper": reference, "difference": None}
    ours, low, high = (None if cell.get(k) is None else 100 * float(cell[k]) for k in ("value", "low", "high"))
    return {"ours": ours, "low": low, "high": high, "paper": reference, "difference": float(ours or 0.0) - reference}


def paper_tables(results: Mapping[str, Result], config: Config) -> list[Table]:
    """Tables 1, 2 and 3 in the paper's layout: ours (greedy) with its interval / the paper's, and the difference."""
    found = paper_cells(results, config)
    note = "ours ± half the interval / the paper's, percent; in parentheses the difference in points."
    if config.world is not None:
        note = (
            "ours (miniature world: other questions, so only signs can be compared) ± half the interval / the paper's, "
            "percent; in parentheses the difference in points."
        )
    titles = [*(base.benchmark(n).title for n in paper()["columns"]), "average"]
    what = {
        "table1": ("Table 1: accuracy on seven benchmarks", titles),
        "table2": ("Table 2: how the constraints enter (7B)", ["accuracy ↑", "inconsistency ↓"]),
        "table3": ("Table 3: fixed and adaptive multipliers (7B)", ["accuracy ↑", "inconsistency ↓"]),
    }
    return [
        Table(
            name,
            title,
            ("method", *columns),
            tuple((row["title"], *map(_shown, row["cells"].values())) for row in found[name]),
            note,
        )
        for name, (title, columns) in what.items()
    ]


def _shown(cell: Mapping[str, float | None]) -> str:
    """ "82.4 ±1.9 / 79.9 (+2.5)"; a dash for what was not evaluated."""
    if cell["ours"] is None or cell["difference"] is None:
        return f"{DASH} / {cell['paper']:.1f}"
    half = "" if cell["low"] is None or cell["high"] is None else f" ±{(cell['high'] - cell['low']) / 2:.1f}"
    return f"{cell['ours']:.1f}{half} / {cell['paper']:.1f} ({cell['difference']:+.1f})"


def _ours(row: Mapping[str, Any], results: Mapping[str, Result], config: Config) -> Result | None:
    """Our result for a row of the paper: the same model file, trained from the same base (the miniature stands in for 7B)."""
    trained_from = row.get("base")
    stands_in = config.world is not None and str(trained_from).endswith("7B-Instruct")
    if trained_from is not None and trained_from != config.models.base and not stands_in:
        return None
    return results.get(row["model"])


def write(tables: Sequence[Table], out: Path, data: Mapping[str, Any]) -> None:
    """tables.md, one .tex a table, and tables.json with every figure."""
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for suffix, text in ((".md", table.markdown()), (".tex", table.latex())):
            aside = out / f"{table.name}{suffix}.part"
            aside.write_text(text, encoding="utf-8")
            aside.replace(out / f"{table.name}{suffix}")
    (out / "all.md").write_text("\n".join(t.markdown() for t in tables), encoding="utf-8")
    write_json(out / "tables.json", {"tables": {t.name: t.to_dict() for t in tables}, **data})


def build(config: Config, root: str | Path = "runs") -> tuple[list[Table], list[Table], Path]:
    """(tables for the terminal, all tables written, their folder). UserError if nothing was evaluated."""
    results = find(config, root)
    comparisons, tables = {}, []
    for kind in KINDS:
        for one, other in PAIRS:
            if one in results and other in results and kind in results[one].kinds() and kind in results[other].kinds():
                found = compare(results[one], results[other], kind, config)
                table = comparison_table(results[one], results[other], kind, found)
                comparisons[table.name] = found
                tables.append(table)
    out = folder(config, "tables", root)
    everything = [
        *main_tables(results, config, "range"),
        *tables,
        *paper_tables(results, config),
        *judging.build(config, root),
    ]
    beside = {"paper": paper_cells(results, config)}
    write(
        everything, out, {**beside, "comparisons": comparisons, "summaries": {n: r.summary for n, r in results.items()}}
    )
    most_telling = [t for t in tables if t.name.endswith("-sampled")] or tables
    return [*most_telling, *main_tables(results, config)], everything, out


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        shown, _, out = build(config, args.runs)
        print("\n\n".join(table.text() for table in shown))
        report = folder(config, "report", args.runs) / "index.html"
        print(f"\ntables: {out}" + (f"\nreport: {report}" if report.exists() else ""))

    run(body, parser("the tables, ours and the paper's, from finished evaluations"))


if __name__ == "__main__":
    main()
