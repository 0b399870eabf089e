"""The LLM judge against the real server: whatever the (mini, clueless) model means, its replies have the form asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fgrpo import hf
from fgrpo.sampling.base import Request
from fgrpo.schema import Judge
from fgrpo.serving import Server
from judges.backends.openai import BACKEND
from judges.base import CONSISTENCY_LABELS, GROUNDING_LABELS, ConsistencyItem, ExtractionItem, GroundingItem, JudgeSet
from judges.calls import Call
from judges.transport import OpenAITransport

BACKBONE = "miniworld/backbone"
SENTENCE = "The red circle is left of the blue square."


@pytest.fixture(autouse=True)
def short_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini model has never seen JSON and fills reasons and white space without end; a bias keeps it to the marks."""
    tokenizer = hf.load_processor(BACKBONE).tokenizer
    marks = {'"': 90.0, ":": 50.0, ",": 50.0, "{": 50.0, "}": 50.0}
    bias = {str(tokenizer.convert_tokens_to_ids(mark)): weight for mark, weight in marks.items()}
    arguments = OpenAITransport._arguments

    def nudged(transport: OpenAITransport, call: Call, urls: Sequence[str]) -> dict[str, Any]:
        return {**arguments(transport, call, urls), "logit_bias": bias}

    monkeypatch.setattr(OpenAITransport, "_arguments", nudged)


@pytest.fixture
def config(server: Server) -> Judge:
    return Judge(
        backend="openai", model=BACKBONE, endpoints=(server.url,), max_completion_tokens=400, concurrency=8, attempts=2
    )


def judged(config: Judge, role: str, items: list[Any]) -> list[Any]:
    async def go() -> list[Any]:
        judges: JudgeSet = BACKEND(config, Path("data"))
        try:
            return list(await getattr(judges, role).judge(items))
        finally:
            await judges.close()

    return asyncio.run(go())


def test_extraction_gives_a_letter_or_zero(config: Judge) -> None:
    items = [ExtractionItem(str(n), ("left", "right"), span) for n, span in enumerate(["left", "to the right", "?"])]
    verdicts = judged(config, "extraction", items)
    assert [verdict.failed for verdict in verdicts] == [False] * 3
    assert {verdict.label for verdict in verdicts} <= {"A", "B", "0"}


def test_consistency_gives_a_label_in_json(config: Judge) -> None:
    items = [
        ConsistencyItem(
            str(n), "Is the red circle left or right of the blue square?", ("left", "right"), SENTENCE, answer
        )
        for n, answer in enumerate(["left", "right"] * 4)
    ]
    verdicts = judged(config, "consistency", items)
    assert all(v.label in CONSISTENCY_LABELS for v in verdicts if not v.failed)
    assert any(not v.failed for v in verdicts), [v.reason for v in verdicts]


def test_grounding_labels_every_sentence_with_its_picture(config: Judge, greedy: list[Request]) -> None:
    contexts = ((), (SENTENCE,))
    items = [
        GroundingItem(
            str(n), r.images, r.text, (SENTENCE, "The circle is red."), contexts, ((112, 112),) * len(r.images)
        )
        for n, r in enumerate(greedy[:8])
    ]
    answers = judged(config, "grounding", items)
    assert [len(verdicts) for verdicts in answers] == [2] * len(items)
    labels = [v.label for verdicts in answers for v in verdicts if not v.failed]
    assert labels, [verdicts[0].reason for verdicts in answers]
    assert set(labels) <= set(GROUNDING_LABELS)


def test_a_picture_too_many_is_a_failed_verdict_and_not_a_score(config: Judge, greedy: list[Request]) -> None:
    item = GroundingItem("many", greedy[0].images * 9, greedy[0].text, (SENTENCE,), ((),), ((112, 112),) * 9)
    ((verdict,),) = judged(config, "grounding", [item])
    assert verdict.failed
    assert verdict.label is None
