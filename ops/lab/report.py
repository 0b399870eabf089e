"""The page of a lab, written from its results alone: declaration, state of the cells, verdicts, tables, figures, commands.

`page` returns Markdown. Paragraphs on what a verdict means are a person's (configs/lab/notes/<name>.yaml); everything else is
computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.layout import DASH, Table
from eval.measures import Measure, measures, measures_of
from eval.results import paper
from ops.lab.analysis import Results
from ops.lab.declaration import CELL, Lab, Part
from ops.lab.statistics import Effect
from ops.lab.verdicts import Verdict

KINDS = ("sampled", "greedy")
NO_NOTE = "*What this means for someone who trains a 7B model: not written yet (configs/lab/notes/{name}.yaml).*"
Rows = Sequence[tuple[str, ...]]


def page(
    name: str, results: Results, seal: Mapping[str, Any] | None, notes: Mapping[str, str], pictures: Mapping[str, str]
) -> str:
    """The page as Markdown.

    Args:
        seal: what `ops.lab.declaration.seal` stored; None if no cell has started.
        notes: {hypothesis: paragraph}.
        pictures: {figure: path relative to the page}.
    """
    lab, verdicts = results.lab, results.verdicts()
    parts = [
        f"# Laboratory: {lab.title}",
        f"`make lab-report LAB={name}` writes this page from the results of `make lab LAB={name}`.",
        lab.question,
        "## Declaration",
        *_declaration(name, lab, seal),
        "## Cells",
        *_cells(results),
        "## Verdicts",
        _method(lab),
        _table("verdicts", _verdict_headings(), [_verdict_row(results.lab, v) for v in verdicts], left=3),
        *_hypotheses(name, lab, verdicts, notes),
        "## Means over seeds",
        *_means(results),
        "## Beside the paper",
        *_paper(results),
        "## Figures",
        *[f"![{key}]({path})" for key, path in pictures.items()],
        "Lines: mean over seeds of the smoothed curves; bands: from the smallest to the largest seed."
        if pictures
        else "No trained cell yet.",
        "## Every cell, and the command that repeats it",
        _repeat(name, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _declaration(name: str, lab: Lab, seal: Mapping[str, Any] | None) -> list[str]:
    out = []
    if seal is None:
        out.append("No cell has started, so no commit is bound to the results yet.")
    elif seal["commit"] and seal["committed"] and str(seal["date"]) <= str(seal["started"]):
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
    out.append(
        f"Primary metric: {lab.primary.metric} ({lab.primary.kind} answers). Stopping rule: {lab.stopping.rule.strip()}"
    )
    out.append("\n".join(f"- `{key}`: {condition.about.strip()}" for key, condition in lab.conditions.items()))
    out.append(
        f"A cell's seed sets curation, tree search, SFT, the order of prompts, sampling in RL and sampling in evaluation. The world (pictures, "
        f"training questions, benchmarks) has seed {lab.world_seed} in all cells, so seeds and methods answer the same questions."
    )
    return out


def _cells(results: Results) -> list[str]:
    states = Counter(cell["state"] for cell in results.cells)
    total = f"{len(results.cells)} declared: " + ", ".join(f"{n} {state}" for state, n in states.most_common()) + "."
    commits = sorted(
        {f"`{c['commit']}`{' with changes' if c.get('dirty') else ''}" for c in results.cells if c.get("commit")}
    )
    odd = [c for c in results.cells if (c["state"] != "done" and c.get("reason")) or c.get("earlier")]
    lines = [
        f"- {c['cell']}: {c['state']}{': ' + c['reason'] if c.get('reason') else ''}{'; earlier attempts: ' + c['earlier'] if c.get('earlier') else ''}"
        for c in odd
    ]
    cpu = sum(c["cpu_seconds"] or 0.0 for c in results.cells)
    out = [
        total,
        f"Code of the finished cells: {', '.join(commits)}. CPU time of all cells without their chains: {cpu / 3600:.1f} h."
        if commits
        else "",
    ]
    return [*out, "Stopped, failed and repeated cells:\n\n" + "\n".join(lines) if lines else ""]


def _method(lab: Lab) -> str:
    settings = lab.analysis
    return (
        f"Effects are paired by seed and question; each seed counts equally. Intervals ({100 * settings.confidence:.0f}%) are of a bootstrap over "
        f"seeds and questions ({settings.samples:,} draws), corrected for the number of seeds (ops/lab/statistics.py). p is two-sided against the declared "
        f"margin, after Holm's correction over the hypotheses of a condition. A hypothesis is supported or refuted below {settings.alpha:g}, else undecided."
    )


def _verdict_headings() -> tuple[str, ...]:
    return ("hypothesis", "condition", "verdict", "effects [interval], points", "p (Holm)")


def _verdict_row(lab: Lab, verdict: Verdict) -> tuple[str, ...]:
    parts = lab.hypotheses[verdict.hypothesis].parts
    effects = "; ".join(
        f"{_words(part)}: {_effect(part, found)}" for part, found in zip(parts, verdict.effects, strict=True)
    )
    p = DASH if verdict.missing else f"{verdict.p_holm:.2g}"
    return (verdict.hypothesis, verdict.condition, verdict.outcome, verdict.missing or effects, p)


def _words(part: Part) -> str:
    metric = part.metric.removeprefix(CELL).replace("_", " ")
    kind = "" if part.metric.startswith(CELL) else f", {part.kind}"
    return f"{metric}{kind}, {part.a}{'' if part.b is None else f' − {part.b}'}"


def _effect(part: Part, found: Effect | None) -> str:
    if found is None:
        return DASH
    scale = 1.0 if part.metric.startswith(f"{CELL}lambda/") else 100.0
    sign = "+" if part.b is not None else ""
    text = f"{scale * found.value:{sign}.1f}"
    return (
        text
        if found.low is None or found.high is None
        else f"{text} [{scale * found.low:{sign}.1f}, {scale * found.high:{sign}.1f}]"
    )


def _hypotheses(name: str, lab: Lab, verdicts: Sequence[Verdict], notes: Mapping[str, str]) -> list[str]:
    out = []
    for key, hypothesis in lab.hypotheses.items():
        found = ", ".join(f"{v.condition}: **{v.outcome}**" for v in verdicts if v.hypothesis == key)
        tests = "; ".join(
            f"{_words(p)} {'>' if p.direction == 'above' else '<'} {100 * (p.margin if p.direction == 'above' else -p.margin):g} points"
            for p in hypothesis.parts
        )
        note = notes.get(key, "").strip() or NO_NOTE.format(name=name)
        out.append(f"### {key}. {hypothesis.claim.strip()}\n\nDeclared test: {tests}.\n\n{found}.\n\n{note}")
    return out


def _means(results: Results) -> list[str]:
    out = []
    shown: Sequence[Measure] = measures()
    for condition in results.lab.conditions:
        for kind in KINDS:
            rows = []
            for method in results.lab.methods:
                seeds = len(results.done(condition, method))
                if seeds:
                    cells = [_plus(results.compare(condition, m.metric, kind, method)) for m in shown]
                    if any(cell != DASH for cell in cells):
                        rows.append((results.lab.title_of(method), str(seeds), *cells))
            if rows:
                out.append(f"### {condition}, {kind} answers, %")
                out.append(_table(f"{condition}-{kind}", ("method", "seeds", *(m.heading for m in shown)), rows))
    if not out:
        return ["No finished cell yet."]
    return [
        *out,
        "Mean over seeds of the mean of the benchmarks (flip, statement and format: of all answers); ± is half the interval.",
    ]


def _plus(found: Effect | None) -> str:
    if found is None:
        return DASH
    value = f"{100 * found.value:.1f}"
    return value if found.low is None or found.high is None else f"{value} ±{50 * (found.high - found.low):.1f}"


def _paper(results: Results) -> list[str]:
    """Tables 2 and 3 of every condition that has a row of them: greedy answers, as the paper's."""
    out = []
    shown = measures_of(paper()["metrics"])
    for table, number in (("table2", 2), ("table3", 3)):
        for condition in results.lab.conditions:
            rows = []
            for line in paper()[table]:
                arm = next(
                    (
                        m
                        for m in results.lab.methods
                        if results.lab.of(m) == line["model"] and not results.lab.methods[m].set
                    ),
                    None,
                )
                if arm is None or not results.done(condition, arm):
                    continue
                cells = [
                    f"{_plus(results.compare(condition, m.metric, 'greedy', arm))} / {line[m.metric]:.1f}"
                    for m in shown
                ]
                rows.append((line["title"], str(len(results.done(condition, arm))), *cells))
            if rows:
                out.append(f"### Table {number}, {condition} (ours ± interval over seeds / the paper's 7B), %")
                out.append(_table(table, ("method", "seeds", *(m.heading for m in shown)), rows))
    return out or ["No finished cell of Tables 2 and 3 yet."]


def _repeat(name: str, results: Results) -> str:
    primary = results.lab.primary
    column = f"{primary.kind}/{primary.metric}"
    rows = []
    for cell in results.cells:
        value = cell.get(column)
        cost = DASH if cell["cpu_seconds"] is None else f"{cell['cpu_seconds']:,.0f}"
        rows.append((cell["cell"], cell["state"], DASH if value is None else f"{100 * value:.2f}", cost))
    words = (
        f"`make lab LAB={name} CELL=<cell> RUNS=again` runs one cell anew, with what it needs, prints its commands, and then its figures to "
        "the last digit."
    )
    return words + "\n\n" + _table("cells", ("cell", "state", f"{column}, %", "CPU s"), rows, left=2)


def _table(name: str, headings: tuple[str, ...], rows: Rows, left: int = 1) -> str:
    """A Markdown table without the heading that `Table` writes above it."""
    return (
        Table(name, "", headings, tuple(tuple(row) for row in rows), left=left).markdown().partition("\n\n")[2].strip()
    )


def relative(pictures: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """The figures' paths as a page in `folder` links them."""
    return {key: path.relative_to(folder).as_posix() for key, path in pictures.items()}
