"""What a reward function returns, with failures: the values that travel from the scorer to the trainer and into a step.

TRL expects a list of numbers and None from each reward function, and keeps nothing else. A `ScoreColumn` is such a list that
also carries which scores failed, why, and the rollouts that were scored. The trainer notes each column as it is returned
(`rl.reward_validation.guarded`) and gathers them (`gather`), so nothing is asked of the scorer afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from fgrpo.types import Score
from judges.imitation import imitates_verdict
from rewards.base import TASK, Report, RewardItem, load, names, report_of

BY_JUDGE = "judge"  # the cause of a score that no rule gave


@dataclass(frozen=True)
class ScoredBatch:
    """One process' rollouts of one generation with all their scores.

    Attributes:
        step: optimizer steps done when the rollouts were sampled.
        items: samples and parsed texts, one per rollout.
        texts: the completions.
        tokens: their lengths in tokens.
        scores: as many scores per reward, by name; monitored rewards are among them.
        monitored: names of the rewards that are logged and weigh nothing.
    """

    step: int
    items: tuple[RewardItem, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    scores: Mapping[str, tuple[Score, ...]]
    monitored: tuple[str, ...] = ()


class ScoreColumn(list[float | None]):
    """Scores of one reward for one process' rollouts: a list as TRL expects it, with the failures.

    Attributes:
        failures: per rollout the reason why its score failed, None where it did not.
        batch: the rollouts that the column belongs to, where the reward function knows them.

    Raises:
        ValueError: not one entry of `failures` per score, or a failed score that has a value.
    """

    def __init__(
        self, values: Sequence[float | None], failures: Sequence[str | None] = (), batch: ScoredBatch | None = None
    ) -> None:
        super().__init__(values)
        self.failures = tuple(failures) or (None,) * len(self)
        self.batch = batch
        if len(self.failures) != len(self):
            raise ValueError(f"{len(self)} scores, but {len(self.failures)} entries of failures")
        for row, (value, reason) in enumerate(zip(self, self.failures, strict=True)):
            if reason is not None and value is not None:
                raise ValueError(f"the score of row {row} failed ({reason}), so it must be None, got {value!r}")

    @classmethod
    def of(cls, scores: Sequence[Score], batch: ScoredBatch | None = None) -> ScoreColumn:
        """The column of these scores."""
        reasons = [(score.reason or "no reason given") if score.failed else None for score in scores]
        return cls([score.value for score in scores], reasons, batch)


@dataclass(frozen=True)
class Gathered:
    """The scores of one generation batch over all processes, in the order of TRL's gathered rows.

    Attributes:
        scores_NK: NaN = no score.
        reasons_NK: per rollout and reward the reason of a failure, None where nothing failed.
        batches: the scored rollouts of each process; empty where the reward functions keep none.
    """

    scores_NK: Tensor
    reasons_NK: tuple[tuple[str | None, ...], ...]
    batches: tuple[ScoredBatch, ...]

    @property
    def failed_NK(self) -> Tensor:
        """Which of the NaN are failures rather than "not applicable"."""
        failed = [[reason is not None for reason in row] for row in self.reasons_NK]
        return torch.tensor(failed, dtype=torch.bool, device=self.scores_NK.device).view(self.scores_NK.shape)


def gather(
    scores_NK: Tensor, returned: Mapping[str, Sequence[float | None]], names: Sequence[str], rows: int
) -> Gathered:
    """Put the columns of all processes beside TRL's gathered scores. Every process calls it.

    Args:
        scores_NK: what TRL gathered.
        returned: what this process' reward functions returned, by name; plain lists and missing names have no failures.
        names: reward names in column order.
        rows: this process' rollouts.
    """
    columns = [returned.get(name) for name in names]
    failures = [column.failures if isinstance(column, ScoreColumn) else (None,) * rows for column in columns]
    batches = [column.batch for column in columns if isinstance(column, ScoreColumn) and column.batch is not None]
    local = (tuple(zip(*failures, strict=True)), batches[0] if batches else None)
    everywhere = gather_object([local])
    return Gathered(
        scores_NK,
        tuple(row for reasons, _ in everywhere for row in reasons),
        tuple(batch for _, batch in everywhere if batch is not None),
    )


def batch_metrics(batches: Sequence[ScoredBatch]) -> dict[str, float]:
    """What metrics.jsonl says of the rollouts themselves, over all processes: accuracy, format, inconsistency, monitored rewards,
    and how many traces imitate a judge's verdict.

    A mean over no score is left out. A reward whose report is inverted (consistency) is logged as its complement, under its
    report's metric ("inconsistency"). From the scores' details: `cause/<reward>/<cause>`, the number of scores that a rule gave
    and why; `count/<reward>/<what>`, sums of "counted"; `monitor/<reward>/<figure>`, means of "monitor".
    """
    if not batches:
        return {}
    columns = {name: [s for batch in batches for s in batch.scores[name]] for name in batches[0].scores}
    task = [dict(score.detail) for score in columns.get(TASK, ())]
    out = {
        "failed": float(sum(score.failed for column in columns.values() for score in column)),
        "imitates_verdict": float(
            sum(imitates_verdict(item.response.think) for batch in batches for item in batch.items)
        ),
        "boxes_dropped": float(sum(item.response.dropped_boxes for batch in batches for item in batch.items)),
    }
    for key in ("accuracy", "format"):
        if task and all(key in detail for detail in task):
            out[key] = sum(detail[key] for detail in task) / len(task)
    for name, column in columns.items():
        values = [score.value for score in column if score.value is not None]
        report = report_named(name)
        if report is not None and report.inverted and values:
            out[report.metric] = (len(values) - sum(values)) / len(values)
        out |= _of_details(name, [score.detail for score in column])
        if name in batches[0].monitored:
            out[f"monitor/{name}/n"] = float(len(values))
            if values:
                out[f"monitor/{name}/mean"] = sum(values) / len(values)
    return out


def _of_details(name: str, details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the details of one reward's scores count and measure."""
    counts: Counter[str] = Counter()
    figures: dict[str, list[float]] = {}
    for detail in details:
        if detail.get("cause", BY_JUDGE) != BY_JUDGE:
            counts[f"cause/{name}/{detail['cause']}"] += 1
        for what, number in detail.get("counted", {}).items():
            counts[f"count/{name}/{what}"] += number
        for figure, value in detail.get("monitor", {}).items():
            figures.setdefault(f"monitor/{name}/{figure}", []).append(value)
    means = {key: sum(values) / len(values) for key, values in figures.items()}
    return {key: float(count) for key, count in sorted(counts.items())} | means


def report_named(name: str) -> Report | None:
    """How the reward of this name is reported; None for the task reward, and for a reward that has no file in rewards/."""
    return report_of(load(name)) if name in names() else None
