"""The tables of a lab's page: means over seeds and the answers behind them, values of cells, probes, and the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.layout import DASH
from eval.measures import Measure, measures, measures_of
from eval.results import paper
from ops.lab import arithmetic, start_weights, words
from ops.lab.analysis import Results
from ops.lab.declaration import CELL, PROBES
from ops.lab.repetitions import REPEATS
from ops.lab.words import table
from rewards.probes import MEASURED

KINDS = ("sampled", "greedy")
FORCED = ("follows_statement", "true", "direct")
Row = tuple[str, ...]


def means(results: Results) -> list[str]:
    """Per condition and kind of answers: the mean of every measure, and how many answers each mean rests on."""
    out, gaps = [], list[str]()
    shown = measures()
    headings = ("method", "seeds", *(m.heading for m in shown))
    for condition in results.lab.conditions:
        for kind in KINDS:
            rows, behind = [], []
            for method, seeds in _arms(results, condition):
                found = [results.compare(condition, m.metric, kind, method) for m in shown]
                if any(found):
                    cells = (words.plus_minus(one, m.metric) for one, m in zip(found, shown, strict=True))
                    rows.append((results.lab.title_of(method), seeds, *cells))
                    behind.append(
                        (results.lab.title_of(method), seeds, *_answers(results, condition, method, kind, shown))
                    )
                gaps += [f"- {condition}, {kind}: {gap}" for one in found if one is not None for gap in one.gaps]
            if rows:
                out += [f"### {condition}, {kind} answers, %", table(f"{condition}-{kind}", headings, rows)]
                out += ["Answers with a value, mean over seeds:", table(f"{condition}-{kind}-n", headings, behind)]
    if not out:
        return ["No finished cell yet."]
    defined = "\n".join(f"- {m.report.title}: {m.report.definition}" for m in shown)
    return [
        "Mean over seeds of the mean of the benchmarks; flip, statement and format are means over all answers that have a value. ± is half the "
        "interval; a mean without it has one seed, or seeds that differ by too little to estimate it. The means are over all seeds of an arm, the effects above over the seeds "
        "that both arms have, so differences of means need not be the effects.",
        defined,
        *out,
        *(["Values that these means lack:\n\n" + "\n".join(dict.fromkeys(gaps))] if gaps else []),
    ]


def _arms(results: Results, condition: str) -> Iterator[tuple[str, str]]:
    """(method, number of its finished seeds) of the arms with one."""
    for method in results.lab.methods:
        seeds = len(results.done(condition, method))
        if seeds:
            yield method, str(seeds)


def _answers(results: Results, condition: str, method: str, kind: str, shown: Sequence[Measure]) -> Iterator[str]:
    for measure in shown:
        answers_S = results.arm(condition, method, measure.metric, kind).answers()
        yield f"{answers_S.mean():,.0f}" if answers_S.sum() else DASH


def of_cells(results: Results) -> list[str]:
    """What a cell has once: answers after forced statements, and multipliers."""
    out = []
    for condition in results.lab.conditions:
        forced, multipliers = list[Row](), list[Row]()
        for method, seeds in _arms(results, condition):
            title = results.lab.title_of(method)
            values = [_range(results, condition, method, f"forced/{name}") for name in FORCED]
            if any(value != DASH for value in values):
                forced.append((title, seeds, *values))
            multipliers += [(title, name, *row) for name, row in _multipliers(results, condition, method)]
        if forced:
            headings = (
                "method",
                "seeds",
                "follows the forced statement",
                "true in spite of it",
                "right without a trace",
            )
            out += [f"### {condition}, forced false statements, %", table(f"{condition}-forced", headings, forced)]
        if multipliers:
            bound = ("method", "constraint", "λ at the end", "steps at its bound, %")
            out += [f"### {condition}, multipliers", table(f"{condition}-lambda", bound, multipliers, left=2)]
    if not out:
        return []
    note = (
        "Mean over seeds, and the smallest to the largest seed. Where every value is 100%, the forced statements are at their ceiling: every arm follows "
        "them, and no difference between arms can show."
    )
    return ["## Values of cells", note, *out]


def _multipliers(results: Results, condition: str, method: str) -> Iterator[tuple[str, Row]]:
    columns = {key for cell in results.done(condition, method) for key, value in cell.items() if value is not None}
    for name in sorted(key.removeprefix("lambda/") for key in columns if key.startswith("lambda/")):
        yield (
            name.replace("_", " "),
            tuple(_range(results, condition, method, f"{column}/{name}") for column in ("lambda", "saturated")),
        )


def _range(results: Results, condition: str, method: str, column: str) -> str:
    values = [cell[column] for cell in results.done(condition, method) if cell.get(column) is not None]
    if not values:
        return DASH
    mean, low, high = (
        words.number(value, f"{CELL}{column}") for value in (sum(values) / len(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})"


def probes(results: Results) -> list[str]:
    """What was measured on the policies, per condition; greedy answers."""
    out = []
    for condition in results.lab.conditions:
        rows = []
        for method, seeds in _arms(results, condition):
            found = [results.compare(condition, f"{PROBES}{name}", "greedy", method) for name in MEASURED]
            if any(found):
                cells = (words.plus_minus(one, f"{PROBES}{name}") for one, name in zip(found, MEASURED, strict=True))
                rows.append((results.lab.title_of(method), seeds, *cells))
        if rows:
            headings = ("method", "seeds", *(name.replace("_", " ") for name in MEASURED))
            out += [f"### {condition}", table(f"{condition}-probes", headings, rows)]
    if not out:
        return []
    explained = (
        "Means over answers of greedy decoding, in the rewards' own units (docs/probes.md): 0.5 is no margin, attention is a share, "
        "vision dependence is in nats; ± is half the interval."
    )
    return ["## Measured on the policies", *out, explained]


def repeated(results: Results) -> list[str]:
    """Every run of the cells that ran more than once: what differs between two runs of the same commands."""
    shown = [m for m in measures() if f"sampled/{m.metric}" in {key for run in results.further for key in run}]
    rows = []
    for cell in results.cells:
        more = [run for run in results.runs(cell["condition"], cell["method"]) if run.get(REPEATS) == cell["cell"]]
        for number, run in enumerate([cell, *more] if more else [], start=1):
            start = str(run.get(start_weights.COLUMN) or DASH)[:8]
            made = (str(run.get("started") or DASH), str(run.get(arithmetic.COLUMN) or DASH)[:8], start)
            values = ((run.get(f"sampled/{m.metric}"), m.metric) for m in shown)
            figures = (DASH if value is None else words.number(value, metric) for value, metric in values)
            rows.append((f"{cell['cell']}, run {number}", *made, *figures))
    if not rows:
        return []
    note = (
        "Means and tables are over first runs. A comparison takes at each seed the earliest runs of both arms that start from the same SFT "
        "weights, so a further run can be the partner of arms that were added on a machine with other arithmetic. Sampled answers, %; the first "
        f"digits of arithmetic and weights ({DASH}: not recorded)."
    )
    headings = ("run", "started", "arithmetic", "SFT weights", *(m.heading for m in shown))
    return ["### Cells that ran more than once", note, table("repeated", headings, rows, left=4)]


def beside_the_paper(results: Results) -> list[str]:
    """Tables 2 and 3 of every condition that has a cell of them: greedy answers, as the paper's; a dash for an arm that has not run."""
    out = []
    shown = measures_of(paper()["metrics"])
    for of_paper, number in (("table2", 2), ("table3", 3)):
        for condition in results.lab.conditions:
            rows, has_run = [], False
            for line in paper()[of_paper]:
                arm = _arm_of(results, line["model"])
                seeds = 0 if arm is None else len(results.done(condition, arm))
                has_run = has_run or seeds > 0
                cells = [f"{_ours(results, condition, m, arm)} / {line[m.metric]:.1f}" for m in shown]
                rows.append((line["title"], str(seeds), *cells))
            if has_run:
                out.append(f"### Table {number}, {condition} (ours ± interval over seeds / the paper's 7B), %")
                out.append(table(of_paper, ("method", "seeds", *(m.heading for m in shown)), rows))
    return out or ["No finished cell of Tables 2 and 3 yet."]


def _arm_of(results: Results, model: str) -> str | None:
    lab = results.lab
    return next((m for m in lab.methods if lab.of(m) == model and not lab.methods[m].set), None)


def _ours(results: Results, condition: str, measure: Measure, arm: str | None) -> str:
    found = None if arm is None else results.compare(condition, measure.metric, "greedy", arm)
    return words.plus_minus(found, measure.metric)
