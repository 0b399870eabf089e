"""From records to metrics: every metric per benchmark with its interval, and the averages that the tables print.

An average is the plain mean of the benchmarks, as in Table 1 (PAPER: mean of the seven columns). A benchmark outside
`eval.benchmarks` (one beside the paper's seven, the user's own) is in no average, unless nothing else was evaluated; a cell's "benchmarks" is how many it
averages, and "averaged" lists those that were evaluated for it. Measures that rest on few answers per benchmark are pooled
over all answers instead (`Report.pooled`). Intervals are percentile bootstraps over questions; trials of one question (SAT's
two orders, MMVP's pairs) are resampled together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval import metrics
from eval.measures import ACCURACY, Measure, measures
from fgrpo.schema import Eval
from fgrpo.types import EvalRecord

Cell = dict[str, Any]  # {"value", "low", "high", "n"}


def summarise(records: Sequence[EvalRecord], paired: Sequence[str], settings: Eval) -> dict[str, Any]:
    """{kind: {"benchmarks": {name: {metric: cell}}, "average": {metric: cell}, "counts": …}} for "greedy" and "sampled".

    Args:
        paired: benchmarks whose groups are pairs, which get a pair accuracy.
        settings: bootstrap samples, confidence, and the benchmarks of the average.
    """
    every = measures()
    out: dict[str, Any] = {}
    for kind in sorted({str(r.meta["kind"]) for r in records}):
        of_kind = [r for r in records if r.meta["kind"] == kind]
        names = list(dict.fromkeys(r.benchmark for r in of_kind))
        by_benchmark = {name: [r for r in of_kind if r.benchmark == name] for name in names}
        averaged = {name: rows for name, rows in by_benchmark.items() if name in settings.benchmarks} or by_benchmark
        averages = {measure.metric: _average(averaged, measure, settings) for measure in every}
        out[kind] = {
            "benchmarks": {n: _benchmark(rows, every, n in paired, settings) for n, rows in by_benchmark.items()},
            "average": {metric: cell for metric, cell in averages.items() if cell is not None},
            "averaged": list(averaged),
            "counts": _counts(of_kind),
        }
    return out


def _benchmark(rows: Sequence[EvalRecord], every: Sequence[Measure], paired: bool, settings: Eval) -> dict[str, Cell]:
    cells = {}
    for measure in every:
        values = [measure.value_of(r) for r in rows]
        cell = _cell(values, [r.meta["group"] for r in rows], settings)
        if cell is not None:
            cells[measure.metric] = cell
    if paired:
        pairs = metrics.pairs([ACCURACY.value_of(r) for r in rows], [(r.meta["group"], _round(r)) for r in rows])
        cell = _cell(list(pairs.values()), [group for group, _ in pairs], settings)
        if cell is not None:
            cells["pair_accuracy"] = cell
    counts = _counts(rows)
    for name in ("truncated", "unresolved", "refused", "no_trace"):
        n = len(rows) if name == "refused" else len(rows) - counts["refused"]  # the others: of answered requests
        if n and counts[name] is not None:
            cells[name] = {"value": counts[name] / n, "low": None, "high": None, "n": n}
    by_rules = _cell([_by_rules(r) for r in rows], [r.meta["group"] for r in rows], settings)
    if by_rules is not None:
        cells["accuracy_by_rules"] = by_rules
    return cells


def _by_rules(record: EvalRecord) -> float | None:
    """The accuracy by rules alone: an answer that the rules cannot read is not correct, whatever a judge read.

    It differs from the judged accuracy where a judge reads much, which is where a judge can be hacked. None: refused.
    """
    if record.meta["finish"] == "error":
        return None
    return ACCURACY.value_of(record) if record.meta["answer_from"] == "rules" else 0.0


def _round(record: EvalRecord) -> str:
    """The part of a sampled rollout's id after "#": rollouts of one number form a pair."""
    return record.id.partition("#")[2]


def _cell(values: Sequence[float | None], clusters: Sequence[Any], settings: Eval) -> Cell | None:
    centre = metrics.mean(values)
    bounds = metrics.bootstrap_ci(
        values, samples=settings.bootstrap_samples, confidence=settings.confidence, clusters=clusters
    )
    if centre is None or bounds is None:
        return None
    return {"value": centre, "low": bounds[0], "high": bounds[1], "n": len(metrics.values(values))}


def _average(by_benchmark: Mapping[str, Sequence[EvalRecord]], measure: Measure, settings: Eval) -> Cell | None:
    if measure.report.pooled:
        pooled = [r for rows in by_benchmark.values() for r in rows]
        return _cell([measure.value_of(r) for r in pooled], [r.meta["group"] for r in pooled], settings)
    centres, draws, n = [], [], 0
    for seed, rows in enumerate(by_benchmark.values()):
        values = [measure.value_of(r) for r in rows]
        centre = metrics.mean(values)
        sampled = metrics.bootstrap_means(
            values, samples=settings.bootstrap_samples, seed=seed, clusters=[r.meta["group"] for r in rows]
        )
        if centre is not None and sampled is not None:
            centres.append(centre)
            draws.append(sampled)
            n += len(metrics.values(values))
    if not centres:
        return None
    low, high = metrics.interval(np.mean(draws, axis=0), settings.confidence)
    return {"value": sum(centres) / len(centres), "low": low, "high": high, "n": n, "benchmarks": len(centres)}


def _truncated(rows: Sequence[EvalRecord]) -> int | None:
    """How many answers were cut off; None where a file of another harness does not tell how its replies ended."""
    if any(r.meta.get("finish_known") is False for r in rows):
        return None
    return sum(r.meta["finish"] == "length" for r in rows)


def _counts(rows: Sequence[EvalRecord]) -> dict[str, Any]:
    states = Counter(f"{name}/{score.state}" for r in rows for name, score in r.scores.items())
    return {
        "rollouts": len(rows),
        "truncated": _truncated(rows),
        "refused": sum(r.meta["finish"] == "error" for r in rows),
        "unresolved": sum(r.meta["answer_from"] in ("unresolved", "none") for r in rows),
        "imitates_verdict": sum(bool(r.meta.get("imitates_verdict")) for r in rows),
        "no_trace": sum("trace" in r.meta for r in rows),
        "states": dict(sorted(states.items())),
    }
