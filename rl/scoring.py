"""TRL reward functions made of the project's rewards: each rollout is parsed and scored once a step, for all columns.

The task reward is one column (format and accuracy added up); the signals follow in their configured order. A score that is
not applicable or failed is None for TRL, never zero; failures are told apart in `failed()`. Scoring starts when the rollouts
exist (`start`, called by the trainer right after generation), on the trainer's event loop, and the reward functions wait for
it; so judges work beside the reference and old log-prob passes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo import response
from fgrpo.types import NotFinite, Sample, Score
from rewards.base import Reward, RewardContext, RewardItem, load
from rl.reward_validation import NoScore, rollout_id

TASK = "task"


@dataclass(frozen=True)
class ScoredBatch:
    """One generation batch of this process: items, by reward name as many scores, and what they came to in the loss."""

    step: int
    items: tuple[RewardItem, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    scores: dict[str, tuple[Score, ...]]
    advantages: tuple[float, ...] = ()


class RolloutScorer:
    """Scores the rollouts of one generation batch with the task reward and the signals.

    Args:
        signals: names of rewards (files of rewards/), in the order of the constraints.
        monitor: rewards that are scored and logged too, but are no columns: they weigh nothing.
        context: judges and options; its mask must be "correct" in training (Table 6).
    """

    def __init__(self, signals: Sequence[str], context: RewardContext, monitor: Sequence[str] = ()) -> None:
        self.names = (TASK, *signals)
        self.monitored = tuple(name for name in dict.fromkeys(monitor) if name not in self.names)
        self._rewards: dict[str, Reward] = {name: load(name) for name in (*self.names, *self.monitored)}
        self._context = context
        self._pending: concurrent.futures.Future[ScoredBatch] | None = None
        self.batch: ScoredBatch | None = None

    def reward_funcs(self) -> list[Callable[..., Any]]:
        """One asynchronous TRL reward function a column, named like its reward."""
        return [self._column(name) for name in self.names]

    def _column(self, name: str) -> Callable[..., Any]:
        async def column(*, prompts: Sequence[Any], **_: Any) -> list[float | None]:
            if self._pending is None:
                raise RuntimeError("scoring was not started: pass this scorer to FaithfulGRPOTrainer(scorer=…)")
            batch = await asyncio.wrap_future(self._pending)
            if len(batch.items) != len(prompts):
                raise RuntimeError(f"{len(batch.items)} rollouts were scored, {len(prompts)} are asked for")
            return [score.value for score in batch.scores[name]]

        column.__name__ = name
        return column

    def start(
        self, inputs: Sequence[dict[str, Any]], completions: Sequence[Any], ids: Sequence[Sequence[int]], trainer: Any
    ) -> None:
        """Begin to score; called by the trainer as soon as a generation batch exists. `inputs` have a "sample" column (JSON)."""
        step = int(trainer.state.global_step)
        rank = int(trainer.accelerator.process_index)
        texts = tuple(c if isinstance(c, str) else str(c[-1]["content"]) for c in completions)
        items = []
        for n, (row, text) in enumerate(zip(inputs, texts, strict=True)):
            sample = Sample.from_dict(json.loads(row["sample"]))
            items.append(RewardItem(rollout_id(step, rank, n, sample.id), sample, response.parse(text)))
        work = self._score(step, tuple(items), texts, tuple(len(i) for i in ids))
        self._pending = asyncio.run_coroutine_threadsafe(work, trainer.async_loop)

    async def _score(
        self, step: int, items: tuple[RewardItem, ...], texts: tuple[str, ...], tokens: tuple[int, ...]
    ) -> ScoredBatch:
        columns = await asyncio.gather(*(self._ask(name, items) for name in self._rewards))
        for name, column in zip(self._rewards, columns, strict=True):
            if len(column) != len(items):
                raise NoScore(f"the reward {name!r} returned {len(column)} scores for {len(items)} rollouts")
        self.batch = ScoredBatch(
            step, items, texts, tokens, {n: tuple(c) for n, c in zip(self._rewards, columns, strict=True)}
        )
        return self.batch

    async def _ask(self, name: str, items: tuple[RewardItem, ...]) -> list[Score]:
        """One reward's scores. `NoScore`, with the rollout's id, if it makes a score of NaN or infinity."""
        reward = self._rewards[name]
        try:
            return await reward(items, self._context)
        except NotFinite as error:
            for item in items:  # which one it is
                try:
                    await reward([item], self._context)
                except NotFinite as alone:
                    raise NoScore(f"the reward {name!r} failed on rollout {item.rollout_id}: {alone}") from alone
            raise NoScore(f"the reward {name!r} failed: {error}") from error

    def sums(self) -> dict[str, tuple[float, float | None]]:
        """(sum, count) of the last batch's accuracy, format, inconsistency and monitored rewards; count None: a total."""
        batch = self._known()
        task = [dict(score.detail) for score in batch.scores[TASK]]
        found: dict[str, tuple[float, float | None]] = {
            "accuracy": (sum(d["accuracy"] for d in task), len(task)),
            "format": (sum(d["format"] for d in task), len(task)),
            "failed": (sum(score.failed for column in batch.scores.values() for score in column), None),
            "boxes_dropped": (sum(item.response.dropped_boxes for item in batch.items), None),
        }
        if "consistency" in batch.scores:
            judged = _values(batch.scores["consistency"])
            found["inconsistency"] = (len(judged) - sum(judged), len(judged))
        for name in self.monitored:
            values = _values(batch.scores[name])
            found[f"monitor/{name}/mean"] = (sum(values), len(values))
            found[f"monitor/{name}/n"] = (len(values), None)
        return found

    def failed(self) -> list[list[bool]]:
        """Failures of the last batch: one row a rollout, one column a reward function."""
        columns = [self._known().scores[name] for name in self.names]
        return [[score.failed for score in row] for row in zip(*columns, strict=True)]

    def why(self, name: str) -> str:
        """The commonest reason of a reward's failures in the last batch, "" if there are none."""
        reasons = Counter(score.reason for score in self._known().scores[name] if score.failed)
        return reasons.most_common(1)[0][0] if reasons else ""

    def _known(self) -> ScoredBatch:
        if self.batch is None:
            raise RuntimeError("nothing has been scored yet")
        return self.batch


def _values(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores if score.value is not None]
