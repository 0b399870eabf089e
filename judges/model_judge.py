"""A judge model answers any task through one `CachedClient`."""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo import schema
from fgrpo.types import Verdict
from judges.base import JudgeSet, Meter
from judges.cached_client import CachedClient
from judges.client import Transport
from judges.task import Item, JudgeTask


class ModelJudge:
    """See `judges.base.Answerer`."""

    def __init__(self, client: CachedClient, config: schema.Judge) -> None:
        self._client, self._config = client, config

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """One call per item, or one per verdict with `sentence_calls`; items without verdicts cost no call."""
        parts = [(i, part) for i, item in enumerate(items) for part in self._split(task, item)]
        answers = await self._client.ask_all([task.call(part, self._config.box_frame) for _, part in parts])
        verdicts: list[list[Verdict]] = [[] for _ in items]
        for (i, _), answer in zip(parts, answers, strict=True):
            verdicts[i].extend(answer)
        return [tuple(of_item) for of_item in verdicts]

    def _split(self, task: JudgeTask[Item], item: Item) -> list[Item]:
        if task.size(item) == 0:
            return []
        return task.split(item) if task.split is not None and self._config.sentence_calls else [item]


def judges_of_model(config: schema.Judge, meter: Meter, transport: Transport) -> JudgeSet:
    """The judge set of a model that `transport` reaches."""
    client = CachedClient(config, meter, transport)
    return JudgeSet(ModelJudge(client, config), config.model, True, meter, client.close)
