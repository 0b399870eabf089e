"""A model behind any OpenAI-compatible endpoint: a vLLM server, or the OpenAI API (reasoning effort, JSON schema).

The paper's judges: Qwen3-VL-30B-A3B-Instruct in training, GPT-5.4 in evaluation, Qwen3-4B-Instruct for extraction (Sections
4.1, B.2, C.1). All sentences of a rollout go in one grounding call, where the paper makes one call each (`sentence_calls`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fgrpo import schema
from fgrpo.types import Verdict
from judges.base import Backend, ConsistencyItem, ExtractionItem, GroundingItem, JudgeSet, Meter, make_meter
from judges.cached_client import Service
from judges.client import OpenAITransport, Transport
from judges.requests import consistency_call, extraction_call, grounding_call, prompt_hashes


class _Consistency:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def judge(self, items: Sequence[ConsistencyItem]) -> list[Verdict]:
        return [verdicts[0] for verdicts in await self._service.ask_all([consistency_call(item) for item in items])]


class _Extraction:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def judge(self, items: Sequence[ExtractionItem]) -> list[Verdict]:
        return [verdicts[0] for verdicts in await self._service.ask_all([extraction_call(item) for item in items])]


class _Grounding:
    def __init__(self, service: Service, config: schema.Judge) -> None:
        self._service, self._config = service, config

    async def judge(self, items: Sequence[GroundingItem]) -> list[tuple[Verdict, ...]]:
        parts = [(i, part) for i, item in enumerate(items) for part in self._split(item)]
        answers = await self._service.ask_all([grounding_call(part, self._config.box_frame) for _, part in parts])
        verdicts: list[list[Verdict]] = [[] for _ in items]
        for (i, _), answer in zip(parts, answers, strict=True):
            verdicts[i].extend(answer)
        return [tuple(of_item) for of_item in verdicts]

    def _split(self, item: GroundingItem) -> list[GroundingItem]:
        """One call's worth each: the whole item, or a sentence at a time."""
        if not item.sentences:
            return []
        if not self._config.sentence_calls:
            return [item]
        pairs = zip(item.sentences, item.contexts, strict=True)
        return [dataclasses.replace(item, sentences=(s,), contexts=(c,)) for s, c in pairs]


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = make_meter(config)
    return of_model(config, meter, OpenAITransport(config, meter))


def of_model(config: schema.Judge, meter: Meter, transport: Transport) -> JudgeSet:
    """The judges of a model that `transport` reaches."""
    service = Service(config, meter, transport)
    return JudgeSet(
        _Consistency(service),
        _Grounding(service, config),
        _Extraction(service),
        config.model,
        prompt_hashes(),
        meter,
        service.close,
    )


BACKEND: Backend = _build
