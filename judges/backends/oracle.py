"""The miniature world's exact truth as a judge: no model, no prompt, no doubt. Used by the demo and to check model judges.

Grounding finds the scene of each picture in <data root>/scenes.jsonl by the picture's pixels, since the genuine data formats
carry no scene. What is not of the miniature world (another question, another picture) is a failed verdict, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fgrpo import schema
from fgrpo.types import Verdict
from judges.base import (
    UNRESOLVED,
    Backend,
    ConsistencyItem,
    ExtractionItem,
    GroundingItem,
    JudgeSet,
    Meter,
    failed_verdict,
)
from miniworld.language import parse_question
from miniworld.oracle import judge_conclusion, judge_sentence, option_word
from miniworld.truth import TruthBook

NAME = "oracle"


class _Consistency:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def judge(self, items: Sequence[ConsistencyItem]) -> list[Verdict]:
        return [self._verdict(item) for item in items]

    def _verdict(self, item: ConsistencyItem) -> Verdict:
        self._meter.calls += 1
        if parse_question(item.question) is None:
            self._meter.fail("not a question of the miniature world")
            return failed_verdict("not a question of the miniature world", NAME)
        holds, reason = judge_conclusion(item.question, item.think, item.answer, item.choices)
        return Verdict("CONSISTENT" if holds else "INCONSISTENT", reason, judge=NAME)


class _Grounding:
    def __init__(self, meter: Meter, data_root: Path) -> None:
        self._meter, self._root = meter, data_root

    @cached_property
    def _book(self) -> TruthBook:
        return TruthBook.load(self._root)

    async def judge(self, items: Sequence[GroundingItem]) -> list[tuple[Verdict, ...]]:
        return [self._verdicts(item) for item in items]

    def _verdicts(self, item: GroundingItem) -> tuple[Verdict, ...]:
        self._meter.calls += 1
        try:
            scenes = self._book.scenes(item.images)
            reason = "a picture is not of the miniature world"
        except OSError as error:
            scenes, reason = None, f"a picture cannot be read: {error}"
        if scenes is None:
            self._meter.fail(reason)
            return (failed_verdict(reason, NAME),) * len(item.sentences)
        verdicts = []
        for sentence, context in zip(item.sentences, item.contexts, strict=True):
            label, why = judge_sentence(scenes, item.question, context, sentence)
            verdicts.append(Verdict(label, why, judge=NAME))
        return tuple(verdicts)


class _Extraction:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def judge(self, items: Sequence[ExtractionItem]) -> list[Verdict]:
        return [self._verdict(item) for item in items]

    def _verdict(self, item: ExtractionItem) -> Verdict:
        self._meter.calls += 1
        meant = option_word(item.answer_span, item.choices)
        options = [option_word(choice, item.choices) for choice in item.choices]
        if options.count(meant) != 1:
            return Verdict(UNRESOLVED, "the span is no single option", judge=NAME)
        return Verdict(chr(ord("A") + options.index(meant)), judge=NAME)


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = Meter()
    return JudgeSet(_Consistency(meter), _Grounding(meter, data_root), _Extraction(meter), NAME, meter=meter)


BACKEND: Backend = _build
