"""Classes of verdicts on one answer, their rates, and examples of each class that are drawn at random.

A class is the answer's correctness with the 0/1 rewards: right or wrong, and consistent or not. The draw depends on the seed
and on ids alone, so a page shows the same examples each time, and nobody chose them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.measures import ACCURACY, FLIP, Measure, reward_measures
from eval.results import Result
from fgrpo.types import EvalRecord

EACH = 3  # examples of one class and model
DIFFER = "differ"


@dataclass(frozen=True)
class Rate:
    """How often a class occurs: `count` of `total` answers, with the number of examples `drawn` of it."""

    tag: str
    title: str
    count: int
    total: int
    drawn: int = 0

    @property
    def percent(self) -> str:
        """The share, such as "12.5%"; a dash without answers."""
        return f"{100 * self.count / self.total:.1f}%" if self.total else "–"


def titles() -> dict[str, str]:
    """Every class by its tag; a class that cannot occur (no 0/1 reward has a score) is left out by `rates`."""
    checks = [m.score_title for m in _checks()] or ["every check"]
    held, fails = " and ".join(checks), " or without ".join(checks)
    unjudged = "no verdict on the trace" if len(checks) == 1 else "a verdict on the trace is missing"
    return {
        "right-holds": f"right answer with {held}",
        "right-fails": f"right answer without {fails}",
        "wrong-holds": f"wrong answer with {held}",
        "wrong-fails": f"wrong answer without {fails}",
        "right-unjudged": f"right answer, {unjudged}",
        "wrong-unjudged": f"wrong answer, {unjudged}",
        "unscored": "answer not scored",
        "flip": "wrong statement, another answer",
    }


def tags(record: EvalRecord, checks: Sequence[Measure] | None = None) -> tuple[str, ...]:
    """The classes of one record: one by correctness and checks, and "flip" besides. None for a request that was refused.

    With several checks, one that fails decides; all must have held for "holds", so that a missing verdict is no pass.

    Args:
        checks: the 0/1 rewards, if they were looked up before.
    """
    if record.meta.get("finish") == "error":
        return ()
    flips = ("flip",) if _value(record, FLIP) == 1.0 else ()
    correct = _value(record, ACCURACY)
    if correct is None:
        return ("unscored", *flips)
    values = [_value(record, m) for m in (_checks() if checks is None else checks)]
    if any(value is not None and value != 1.0 for value in values):
        trace = "fails"
    else:
        trace = "unjudged" if not values or None in values else "holds"
    return (f"{'right' if correct == 1.0 else 'wrong'}-{trace}", *flips)


def answered(result: Result, kind: str) -> dict[str, EvalRecord]:
    """The records of one decoding by id, without requests that the engine refused."""
    return {r.id: r for r in result.records() if r.meta["kind"] == kind and r.meta["finish"] != "error"}


def rates(records: Mapping[str, EvalRecord], drawn: Sequence[str] = ()) -> list[Rate]:
    """How often each class occurs among `records`, the classes that do occur only."""
    checks = _checks()
    of_each = {i: tags(record, checks) for i, record in records.items()}
    out = []
    for tag, title in titles().items():
        members = {i for i, found in of_each.items() if tag in found}
        if members:
            out.append(Rate(tag, title, len(members), len(records), len(members & set(drawn))))
    return out


def differing(by_model: Sequence[Mapping[str, EvalRecord]], drawn: Sequence[str] = ()) -> Rate | None:
    """On how many of the questions that the first two models share their classes differ; None for one model."""
    if len(by_model) < 2:
        return None
    shared = [i for i in by_model[0] if i in by_model[1]]
    checks = _checks()
    differ = {i for i in shared if tags(by_model[0][i], checks)[0] != tags(by_model[1][i], checks)[0]}
    return Rate(DIFFER, "verdicts of the two models differ", len(differ), len(shared), len(differ & set(drawn)))


def draw(by_model: Sequence[Mapping[str, EvalRecord]], seed: int, each: int = EACH) -> list[str]:
    """Ids of rollouts: `each` of every class of the first two models, drawn at random, in the order of the records.

    A further model is drawn from on questions that neither of these has answered.

    Args:
        by_model: records by id, one mapping per model.
        seed: with the class it decides the draw; the number of other classes does not.
    """
    chosen: set[str] = set()
    checks = _checks()
    for number, records in enumerate(by_model):
        seen = {i for first in by_model[:2] for i in first} if number > 1 else set()
        of_record = {i: tags(record, checks) for i, record in records.items() if i not in seen}
        for tag in titles():
            members = sorted(i for i, found in of_record.items() if tag in found)
            chosen |= set(random.Random(f"{seed}/{number}/{tag}").sample(members, min(each, len(members))))
    order = dict.fromkeys(i for records in by_model for i in records)
    return [i for i in order if i in chosen]


def _checks() -> list[Measure]:
    return [m for m in reward_measures() if m.report.binary]


def _value(record: EvalRecord, measure: Measure) -> float | None:
    score = record.scores.get(measure.score)
    return None if score is None else score.value
