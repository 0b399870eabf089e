"""TRL reward functions made of the project's rewards: each rollout is parsed and scored once per step, for all columns.

The task reward is one column (format and accuracy added up); the constraints' rewards follow in their configured order. A
score that is not applicable or failed is None for TRL, never zero; the returned `ScoreColumn` tells the two apart. Scoring
starts when the rollouts exist (`start`, called by the trainer right after generation), on the trainer's event loop, and the
reward functions wait for it. So judges work beside the reference and old log-prob passes. Rewards with `needs` wait for what the
trainer measures after these passes (`measured`, rl/probes).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from fgrpo import response
from fgrpo.errors import UserError
from fgrpo.types import NotFinite, Sample, Score
from rewards.base import TASK, Reward, RewardContext, RewardItem, judge_task_of, load, needs_group, needs_of
from rewards.probes import Probes
from rl.probes.base import Rollouts
from rl.reward_validation import NoScore, rollout_id
from rl.scored_batch import ScoreColumn, ScoredBatch
from rl.scorer import ScoredTrainer


class RolloutScorer:
    """Scores the rollouts of one generation batch with the task reward and the constraints' rewards.

    Args:
        constraints: names of rewards (files of rewards/), in the order of the constraints.
        task: the reward of column 0; if it is not the task's own, that one is monitored.
        context: judges and options; its mask must be "correct" in training (Table 6). Boxes are read with its tag and frame.
        monitor: rewards that are scored and logged too, but are not columns, so they weigh nothing. What they cannot score is
            not applicable to them, whatever `context.unscorable` says.

    Raises:
        UserError: no reward has such a name (names the nearest).
    """

    def __init__(
        self, constraints: Sequence[str], context: RewardContext, monitor: Sequence[str] = (), task: str = TASK
    ) -> None:
        self.names = (task, *constraints)
        self.monitored = tuple(name for name in dict.fromkeys((TASK, *monitor)) if name not in self.names)
        self._rewards: dict[str, Reward] = {name: load(name) for name in (*self.names, *self.monitored)}
        self._context = context
        self._monitor_context = dataclasses.replace(context, unscorable="not_applicable")
        self._pending: concurrent.futures.Future[ScoredBatch] | None = None
        self.needs = frozenset(name for reward in self._rewards.values() for name in needs_of(reward))
        self._measured: concurrent.futures.Future[tuple[Probes, ...]] = concurrent.futures.Future()
        self._rollouts: Rollouts | None = None

    def reward_funcs(self) -> list[Callable[..., Any]]:
        """One asynchronous TRL reward function per column, named like its reward. Each returns a `ScoreColumn`."""
        return [self._column(name) for name in self.names]

    def check_judges(self) -> None:
        """Check that the judges can be called, if a reward asks them; costs no judgement.

        Raises:
            UserError: as `JudgeSet.check_all`, or there is no judge for a reward's question.
        """
        tasks = {name: task for name, reward in self._rewards.items() if (task := judge_task_of(reward)) is not None}
        for name, task in tasks.items():
            if not self._context.judges.answers(task):
                raise UserError(
                    f"the reward {name!r} asks a judge, and judges.training.backend is none; configure a judge (judges/README.md), "
                    "or leave the reward out of rl.constraints, rl.monitor and rl.task_reward"
                )
        if tasks:
            asyncio.run(self._context.judges.check_all())

    @property
    def needs_groups(self) -> tuple[str, ...]:
        """Names of the rewards that see the complete group of a rollout."""
        return tuple(name for name, reward in self._rewards.items() if needs_group(reward))

    def _column(self, name: str) -> Callable[..., Any]:
        async def column(*, prompts: Sequence[Any], **_: Any) -> ScoreColumn:
            if self._pending is None:
                raise RuntimeError("scoring was not started: pass this scorer to FaithfulGRPOTrainer(scorer=…)")
            if self.needs and not self._measured.done():
                raise RuntimeError("nothing was measured: rewards with needs work with FaithfulGRPOTrainer alone")
            batch = await asyncio.wrap_future(self._pending)
            if len(batch.items) != len(prompts):
                raise RuntimeError(f"{len(batch.items)} rollouts were scored, but TRL has {len(prompts)}")
            return ScoreColumn.of(batch.scores[name], batch)

        column.__name__ = name
        return column

    def start(
        self,
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[Any],
        ids: Sequence[Sequence[int]],
        trainer: ScoredTrainer,
    ) -> None:
        """Begin to score; the trainer calls it as soon as a generation batch exists.

        Args:
            inputs: rows with a "sample" column (JSON).
            completions: texts, or chat turns of which the last is the completion.
            ids: token ids of the completions.
            trainer: gives the step, the rank, the size of a group, which completions were cut off, and the event loop.
        """
        step = int(trainer.state.global_step)
        rank = int(trainer.accelerator.process_index)
        texts = tuple(c if isinstance(c, str) else str(c[-1]["content"]) for c in completions)
        tag, frame = self._context.box_tag, self._context.box_frame
        first = rank * len(inputs)  # rows of one prompt follow each other over all processes
        items = []
        for n, (row, text, tokens) in enumerate(zip(inputs, texts, ids, strict=True)):
            sample = Sample.from_dict(json.loads(row["sample"]))
            items.append(
                RewardItem(
                    rollout_id(step, rank, n, sample.id),
                    sample,
                    response.parse(text, box_tag=tag, frame=frame),
                    tokens=len(tokens),
                    finish="length" if trainer.is_cut_off(tokens) else "stop",
                    group=f"{step}/{(first + n) // trainer.group_size}",
                )
            )
        self._rollouts = Rollouts(tuple(items), texts, tuple(map(tuple, ids)), self._context)
        self._measured = concurrent.futures.Future()
        work = self._score(step, tuple(items), texts, tuple(len(i) for i in ids))
        self._pending = asyncio.run_coroutine_threadsafe(work, trainer.async_loop)

    @property
    def context(self) -> RewardContext:
        """Of the rewards that are columns."""
        return self._context

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """All rewards, those that are only logged among them."""
        return tuple(self._rewards.values())

    @property
    def rollouts(self) -> Rollouts:
        """What was started: the rollouts that the trainer measures."""
        if self._rollouts is None:
            raise RuntimeError("scoring was not started")
        return self._rollouts

    def measured(self, found: tuple[Probes, ...] | None) -> None:
        """Take what the trainer measured for each rollout; rewards with `needs` go on. None: measuring ended with an error."""
        if found is None:
            self._measured.cancel()
        else:
            self._measured.set_result(found)

    async def _score(
        self, step: int, items: tuple[RewardItem, ...], texts: tuple[str, ...], tokens: tuple[int, ...]
    ) -> ScoredBatch:
        columns = await asyncio.gather(*(self._score_when_ready(name, items) for name in self._rewards))
        for name, column in zip(self._rewards, columns, strict=True):
            if len(column) != len(items):
                raise NoScore(f"the reward {name!r} returned {len(column)} scores for {len(items)} rollouts")
        scores = {name: tuple(column) for name, column in zip(self._rewards, columns, strict=True)}
        return ScoredBatch(step, items, texts, tokens, scores, self.monitored)

    async def _score_when_ready(self, name: str, items: tuple[RewardItem, ...]) -> list[Score]:
        """One reward's scores, after what it needs was measured. The scored batch keeps the items without these numbers."""
        if not needs_of(self._rewards[name]):
            return await self._score_with(name, items)
        probes = await asyncio.wrap_future(self._measured)
        known = tuple(dataclasses.replace(item, probes=of_item) for item, of_item in zip(items, probes, strict=True))
        return await self._score_with(name, known)

    async def _score_with(self, name: str, items: tuple[RewardItem, ...]) -> list[Score]:
        """One reward's scores. `NoScore`, with the rollout's id, if the reward makes a score of NaN or infinity."""
        reward = self._rewards[name]
        context = self._monitor_context if name in self.monitored else self._context
        try:
            return await reward(items, context)
        except NotFinite as error:
            for item in items:  # find out which one it is
                try:
                    await reward([item], context)
                except NotFinite as alone:
                    raise NoScore(f"the reward {name!r} failed on rollout {item.rollout_id}: {alone}") from alone
            raise NoScore(f"the reward {name!r} failed: {error}") from error
