"""A judge model answers any task through one `CachedClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from fgrpo import schema
from fgrpo.types import Verdict
from judges.base import JudgeSet, Meter, unchecked
from judges.cached_client import CachedClient
from judges.client import Transport
from judges.task import BlindForm, Item, JudgeTask


class ModelJudge:
    """See `judges.base.Answerer`."""

    def __init__(self, client: CachedClient, config: schema.Judge) -> None:
        self._client, self._config = client, config

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """One call per item, or one per verdict with `sentence_calls`; items without verdicts cost no call.

        With `blind`, items that the task's blind form applies to are put in that form.
        """
        if not self._config.blind or task.blind is None:
            return await self._answer(task, items)
        blind = task.blind
        is_blind = [blind.applies(item) for item in items]
        unseen = [item for item, hidden in zip(items, is_blind, strict=True) if hidden]
        seen = [item for item, hidden in zip(items, is_blind, strict=True) if not hidden]
        of_unseen, of_seen = await asyncio.gather(self._answer(blind.task, unseen), self._answer(task, seen))
        read = iter([tuple(map(_reader(blind, item), v)) for item, v in zip(unseen, of_unseen, strict=True)])
        plain = iter(of_seen)
        return [next(read) if hidden else next(plain) for hidden in is_blind]

    async def _answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        parts = [(i, part) for i, item in enumerate(items) for part in self._split(task, item)]
        config = self._config
        calls = [task.call(part, config.box_frame, rubric=config.rubric, labels=config.labels) for _, part in parts]
        answers = await self._client.ask_all(calls)
        verdicts: list[list[Verdict]] = [[] for _ in items]
        for (i, _), answer in zip(parts, answers, strict=True):
            verdicts[i].extend(answer)
        return [tuple(of_item) for of_item in verdicts]

    def _split(self, task: JudgeTask[Item], item: Item) -> list[Item]:
        if task.size(item) == 0:
            return []
        return task.split(item) if task.split is not None and self._config.sentence_calls else [item]


def _reader(blind: BlindForm[Item], item: Item) -> Callable[[Verdict], Verdict]:
    """The plain task's verdict on `item`, from the blind form's; a failure stays one."""

    def read(verdict: Verdict) -> Verdict:
        if verdict.failed or verdict.label is None:
            return verdict
        label, reason = blind.read(item, verdict.label)
        return replace(verdict, label=label, reason=f"{reason}: {verdict.reason}" if verdict.reason else reason)

    return read


def judges_of_model(
    config: schema.Judge,
    meter: Meter,
    transport: Transport,
    check: Callable[[], Awaitable[None]] = unchecked,
    slots: int | None = None,
) -> JudgeSet:
    """The judge set of a model that `transport` reaches; `check` and `slots` are those of `JudgeSet`."""
    client = CachedClient(config, meter, transport)
    return JudgeSet(
        ModelJudge(client, config),
        config.model,
        True,
        meter,
        client.close,
        blind=config.blind,
        check=check,
        slots=slots,
    )
