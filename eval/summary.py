"""From records to figures: every metric of every benchmark with its interval, and the averages that the tables print.

Averages as in Table 1: the plain mean of the benchmarks (PAPER: mean of the seven columns), for accuracy, inconsistency and
grounding; a benchmark outside `eval.benchmarks` (people's own) is in no average unless nothing else was evaluated, and a cell's
"benchmarks" says of how many it is the mean. Flip and statement rates rest on few answers a benchmark and are pooled over all of them instead. Intervals are
percentile bootstraps over questions; trials of one question (SAT's two orders, MMVP's pairs) are resampled together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval import metrics
from fgrpo.schema import Eval
from fgrpo.types import EvalRecord

# metric -> (score it is the mean of, whether it is 1 − mean)
METRICS: dict[str, tuple[str, bool]] = {
    "accuracy": ("accuracy", False),
    "inconsistency": ("consistency", True),
    "semantic": ("semantic", False),
    "spatial": ("spatial", False),
    "flip": ("flip", False),
    "statement": ("statement", False),
    "format": ("format", False),
}
POOLED = ("flip", "statement", "format")
HIGHER_IS_BETTER = {
    "accuracy": True,
    "inconsistency": False,
    "semantic": True,
    "spatial": True,
    "flip": False,
    "statement": True,
}

Cell = dict[str, Any]  # {"value", "low", "high", "n"}


def value_of(record: EvalRecord, metric: str) -> float | None:
    """The value of `metric` for one record, None if it has none."""
    name, inverted = METRICS[metric]
    score = record.scores.get(name)
    if score is None or score.value is None:
        return None
    return 1.0 - score.value if inverted else score.value


def summarise(records: Sequence[EvalRecord], paired: Sequence[str], settings: Eval) -> dict[str, Any]:
    """{kind: {"benchmarks": {name: {metric: cell}}, "average": {metric: cell}, "counts": …}} for "greedy" and "sampled"."""
    out: dict[str, Any] = {}
    for kind in sorted({str(r.meta["kind"]) for r in records}):
        mine = [r for r in records if r.meta["kind"] == kind]
        names = list(dict.fromkeys(r.benchmark for r in mine))
        split = {name: [r for r in mine if r.benchmark == name] for name in names}
        counted = {name: rows for name, rows in split.items() if name in settings.benchmarks} or split
        benchmarks = {name: _benchmark(rows, name in paired, settings) for name, rows in split.items()}
        out[kind] = {
            "benchmarks": benchmarks,
            "average": {
                metric: cell for metric in METRICS if (cell := _average(counted, metric, settings)) is not None
            },
            "counts": _counts(mine),
        }
    return out


def _benchmark(rows: Sequence[EvalRecord], paired: bool, settings: Eval) -> dict[str, Cell]:
    cells = {}
    for metric in METRICS:
        values = [value_of(r, metric) for r in rows]
        cell = _cell(values, [r.meta["group"] for r in rows], settings)
        if cell is not None:
            cells[metric] = cell
    if paired:
        found = metrics.pairs([value_of(r, "accuracy") for r in rows], [(r.meta["group"], _round(r)) for r in rows])
        cell = _cell(list(found.values()), [group for group, _ in found], settings)
        if cell is not None:
            cells["pair_accuracy"] = cell
    counts = _counts(rows)
    for name in ("truncated", "unresolved", "refused"):
        cells[name] = {"value": counts[name] / len(rows), "low": None, "high": None, "n": len(rows)}
    by_rules = _cell([_by_rules(r) for r in rows], [r.meta["group"] for r in rows], settings)
    if by_rules is not None:
        cells["accuracy_by_rules"] = by_rules
    return cells


def _by_rules(record: EvalRecord) -> float | None:
    """The accuracy that rules alone give, beside the judged one: what they cannot read is not correct, whatever a judge made of
    it. The two lie apart where a judge reads much, which is where it can be hacked. None for what was refused."""
    if record.meta["finish"] == "error":
        return None
    return value_of(record, "accuracy") if record.meta["answer_from"] == "rules" else 0.0


def _round(record: EvalRecord) -> str:
    """Sampled rollouts of one number belong together in a pair."""
    return record.id.partition("#")[2]


def _cell(values: Sequence[float | None], clusters: Sequence[Any], settings: Eval) -> Cell | None:
    centre = metrics.mean(values)
    bounds = metrics.bootstrap_ci(
        values, samples=settings.bootstrap_samples, confidence=settings.confidence, clusters=clusters
    )
    if centre is None or bounds is None:
        return None
    return {"value": centre, "low": bounds[0], "high": bounds[1], "n": len(metrics.values(values))}


def _average(split: Mapping[str, Sequence[EvalRecord]], metric: str, settings: Eval) -> Cell | None:
    if metric in POOLED:
        pooled = [r for part in split.values() for r in part]
        return _cell([value_of(r, metric) for r in pooled], [r.meta["group"] for r in pooled], settings)
    centres, draws, n = [], [], 0
    for seed, rows in enumerate(split.values()):
        values = [value_of(r, metric) for r in rows]
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


def _counts(rows: Sequence[EvalRecord]) -> dict[str, Any]:
    states = Counter(f"{name}/{score.state}" for r in rows for name, score in r.scores.items())
    return {
        "rollouts": len(rows),
        "truncated": sum(r.meta["finish"] == "length" for r in rows),
        "refused": sum(r.meta["finish"] == "error" for r in rows),
        "unresolved": sum(r.meta["answer_from"] in ("unresolved", "none") for r in rows),
        "states": dict(sorted(states.items())),
    }
