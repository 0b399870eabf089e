"""What evaluation measures: one list that scoring, summaries, tables, figures and the report iterate over.

A score is a key of scores.jsonl, a metric a key of summary.json. Each reward declares its metric (`rewards.base.Report`), and
its score has the reward's name. The measures that are not rewards are declared here in the same form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import rewards.base as rewards
from fgrpo.errors import UserError
from fgrpo.types import EvalRecord
from rewards.base import Report


@dataclass(frozen=True)
class Measure:
    """One score of a rollout and the metric that evaluation makes of it.

    Attributes:
        score: the key in scores.jsonl; for a reward its name.
        report: metric key, title, direction and kind of mean.
        is_reward: computed by rewards/<score>.py.
        compared: has a row in the paired comparisons.
        headline: has a card at the top of the report.
    """

    score: str
    report: Report
    is_reward: bool = False
    compared: bool = True
    headline: bool = True

    @property
    def metric(self) -> str:
        """The key in summary.json."""
        return self.report.metric

    @property
    def is_judged(self) -> bool:
        """Whether the score is a judge's."""
        return self.is_reward and rewards.judge_task_of(rewards.load(self.score)) is not None

    @property
    def heading(self) -> str:
        """The title with the arrow of its direction, such as "inconsistency ↓"."""
        return f"{self.report.title} {'↑' if self.report.higher_is_better else '↓'}"

    @property
    def score_title(self) -> str:
        """The title of the score itself, which is the constraint in training: "consistency", not "inconsistency"."""
        return self.score.replace("_", " ") if self.report.inverted else self.report.title

    def value_of(self, record: EvalRecord) -> float | None:
        """The metric's value for one record, None if it has none."""
        score = record.scores.get(self.score)
        if score is None or score.value is None:
            return None
        return 1.0 - score.value if self.report.inverted else score.value


ACCURACY = Measure(
    "accuracy",
    Report(
        "accuracy", "accuracy", binary=True, definition="Share of right answers; an answer nobody can read is wrong."
    ),
)
# The next three rest on few answers per benchmark, so they are pooled. The tables give no test for them, only intervals.
FLIP = Measure(
    "flip",
    Report(
        "flip",
        "flip",
        higher_is_better=False,
        pooled=True,
        definition="Among answers whose last statement is wrong, the share that says something else than the statement.",
    ),
)
STATEMENT = Measure(
    "statement",
    Report("statement", "statement", pooled=True, definition="Share of true last statements about the question."),
    headline=False,
)
FORMAT = Measure(
    "format",
    Report(
        "format", "format", pooled=True, definition="Share of replies that are one trace followed by one answer block."
    ),
    compared=False,
    headline=False,
)


def reward_measures() -> tuple[Measure, ...]:
    """The measures of all rewards that are reported, by their `order`, then by name."""
    rewarded = []
    for name in rewards.names():
        report = rewards.report_of(rewards.load(name))
        if report is not None:
            rewarded.append(Measure(name, report, is_reward=True))
    return tuple(sorted(rewarded, key=lambda measure: (measure.report.order, measure.score)))


def measures() -> tuple[Measure, ...]:
    """Every measure, in the order of the tables' columns.

    Raises:
        UserError: two measures have one score or one metric (names it).
    """
    every = (ACCURACY, *reward_measures(), FLIP, STATEMENT, FORMAT)
    for kind, keys in (("score", [m.score for m in every]), ("metric", [m.metric for m in every])):
        key, count = Counter(keys).most_common(1)[0]
        if count > 1:
            raise UserError(f"two measures have the {kind} {key!r}; rename one of them in its file of rewards/")
    return every


def measures_of(metrics: Sequence[str]) -> tuple[Measure, ...]:
    """The measures whose metrics are named, in that order; UserError if there is none of a name."""
    by_metric = {measure.metric: measure for measure in measures()}
    unknown = [name for name in metrics if name not in by_metric]
    if unknown:
        raise UserError(f"no reward reports the metric {unknown[0]!r}; metrics: {', '.join(by_metric)}")
    return tuple(by_metric[name] for name in metrics)
