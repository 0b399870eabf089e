"""Paired comparisons of two evaluated models on the same questions, and which models are compared.

Differences are means over questions, b − a, with a bootstrap interval; 0/1 measures also get McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval import metrics, models
from eval.layout import DASH, Table
from eval.measures import Measure, measures
from eval.results import Result, judges_of
from fgrpo.schema import Config

KINDS = {"greedy": "greedy answers", "sampled": "sampled answers, temperature 1"}
Entry = dict[
    str, Any
]  # one metric of a comparison: {"n", "a", "b", "difference": {"value", "low", "high"}, "mcnemar", "flipped"}


def trained(results: Mapping[str, Result]) -> list[str]:
    """The evaluated models that a stage of this preset trains, in the order of `results`."""
    return [name for name in results if models.is_trained(name)]


def pairs(results: Mapping[str, Result], config: Config) -> list[tuple[str, str]]:
    """The models to compare, as (first, second).

    - The reasoning base model with the first trained model (SFT, where it was evaluated).
    - The first trained model with the trained models of `eval.models`.
    - Every trained model with the method of the configuration (the last trained model, if that was not evaluated).
    - Every other reasoning model with that method; without a trained model, the first with each further one.
    """
    order = trained(results)
    if not order:
        reasoning = _reasoning(results)
        return [(reasoning[0], name) for name in reasoning[1:]]
    first, goal = order[0], _goal(order, config)
    known = [name for name in results if name in models.names()]
    bases = [n for n in known if n not in order and models.load(n).is_own and models.load(n).mode == "think"]
    chosen = [(base, first) for base in bases]
    if first != goal:
        chosen += [(first, name) for name in order[1:] if name in config.eval.models]
    chosen += [(name, goal) for name in order if name != goal]
    chosen += [(name, goal) for name in _reasoning(results) if name not in order and name not in bases]
    return list(dict.fromkeys(chosen))


def _reasoning(results: Mapping[str, Result]) -> list[str]:
    return [name for name, result in results.items() if result.summary.get("mode") == "think"]


def main_pair(results: Mapping[str, Result], config: Config) -> tuple[str, str] | None:
    """The two models that the report shows side by side: the first other RL method (else SFT), and the configuration's."""
    order = trained(results)
    if len(order) < 2:
        return None
    goal = _goal(order, config)
    others = [name for name in order if name != goal]
    rival = next((name for name in others if models.rl_run(name) is not None), others[0])
    return rival, goal


def _goal(order: list[str], config: Config) -> str:
    return config.method if config.method in order else order[-1]


def compare(a: Result, b: Result, kind: str, config: Config) -> dict[str, Entry]:
    """Paired comparison on the questions that both models answered, by metric.

    Each entry has both means, the difference b − a with its interval, and n. 0/1 measures also have McNemar's test, and
    `flipped`, the ids of the questions that changed. Questions without a value in one of the two are left out.
    """
    first, second = ({r.id: r for r in result.records() if r.meta["kind"] == kind} for result in (a, b))
    shared = [i for i in first if i in second]
    clusters = [first[i].meta["group"] for i in shared]
    out = {}
    for measure in measures():
        if not measure.compared:
            continue
        left, right = ([measure.value_of(side[i]) for i in shared] for side in (first, second))
        gap = metrics.paired_bootstrap(
            left, right, samples=config.eval.bootstrap_samples, confidence=config.eval.confidence, clusters=clusters
        )
        if gap is None:
            continue
        both = [(x, y, i) for x, y, i in zip(left, right, shared, strict=True) if x is not None and y is not None]
        entry: Entry = {
            "n": len(both),
            "a": metrics.mean(x for x, _, _ in both),
            "b": metrics.mean(y for _, y, _ in both),
            "difference": {"value": gap[0], "low": gap[1], "high": gap[2]},
        }
        if measure.report.binary:
            test = metrics.mcnemar(left, right)
            entry["mcnemar"] = {"only_a": test.only_a, "only_b": test.only_b, "p": test.p}
            entry["flipped"] = [i for x, y, i in both if x != y]
        out[measure.metric] = entry
    return out


def verdict(entry: Entry, measure: Measure) -> str:
    """ "better" or "worse" if the difference's interval excludes 0, else "no clear change"."""
    gap = entry["difference"]
    if not (gap["low"] > 0 or gap["high"] < 0):
        return "no clear change"
    return "better" if (gap["value"] > 0) == measure.report.higher_is_better else "worse"


def comparison_table(a: Result, b: Result, kind: str, entries: Mapping[str, Entry]) -> Table:
    """One row per metric: a → b, difference with interval, verdict, discordant questions, p, n."""
    rows = []
    for measure in measures():
        entry = entries.get(measure.metric)
        if entry is None:
            continue
        gap, test = entry["difference"], entry.get("mcnemar")
        rows.append(
            (
                measure.heading,
                f"{100 * entry['a']:.1f} → {100 * entry['b']:.1f}",
                f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]",
                verdict(entry, measure),
                DASH if test is None else f"{test['only_a']} / {test['only_b']}",
                DASH if test is None else f"{test['p']:.2g}",
                str(entry["n"]),
            )
        )
    headings = ("metric", f"{a.title} → {b.title}", "difference", "", "only A / only B", "McNemar p", "n")
    note = (
        f"A is {a.title}, B is {b.title}; the same questions, paired; means over questions, not over benchmarks. n counts the "
        "questions with a value in both (flip needs a wrong statement in both). Only A / only B: questions with the "
        "property (correct; inconsistent) in one model alone. McNemar's test takes "
        "answers as independent; where one question has several answers (sampled answers, both orders of SAT-Real), rely on the "
        "interval, which resamples questions."
    )
    note = " ".join(filter(None, (note, judges_of((a, b)))))
    return Table(
        comparison_name(a, b, kind), f"{a.title} against {b.title} ({KINDS[kind]})", headings, tuple(rows), note
    )


def comparison_name(a: Result, b: Result, kind: str) -> str:
    """The name of a comparison in files: "grpo-t-vs-fgrpo-greedy"."""
    return f"{a.name}-vs-{b.name}-{kind}"
