"""The LLM judge against the real server: whatever the (mini, clueless) model means, its replies have the form asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from eval.extraction import EXTRACTION_TASK, ExtractionItem
from fgrpo.inference.base import Request
from fgrpo.inference.client import Client
from fgrpo.inference.vllm_server import Server
from fgrpo.policy import loading
from fgrpo.schema import Judge
from judges.backends.openai import BACKEND
from judges.base import JudgeSet, Meter
from judges.client import OpenAITransport
from judges.requests import Call
from judges.task import JudgeTask
from rewards.consistency import CONSISTENCY_LABELS, CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_LABELS, GROUNDING_TASK, GroundingItem

BACKBONE = "miniworld/backbone"
SENTENCE = "The red circle is left of the blue square."


@pytest.fixture(autouse=True)
def short_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini model has never seen JSON and fills reasons and white space without end; a bias keeps it to the marks."""
    tokenizer = loading.load_processor(BACKBONE).tokenizer
    marks = {'"': 90.0, ":": 50.0, ",": 50.0, "{": 50.0, "}": 50.0}
    bias = {str(tokenizer.convert_tokens_to_ids(mark)): weight for mark, weight in marks.items()}
    arguments = OpenAITransport._body

    def nudged(transport: OpenAITransport, call: Call, urls: Sequence[str], room: int) -> dict[str, Any]:
        return {**arguments(transport, call, urls, room), "logit_bias": bias}

    monkeypatch.setattr(OpenAITransport, "_body", nudged)


@pytest.fixture
def config(server: Server) -> Judge:
    return Judge(
        backend="openai", model=BACKBONE, endpoints=(server.url,), max_completion_tokens=400, concurrency=8, attempts=2
    )


def judged(config: Judge, task: JudgeTask[Any], items: list[Any]) -> list[Any]:
    async def go() -> list[Any]:
        judges: JudgeSet = BACKEND(config, Path("data"))
        try:
            return list(await (judges.ask_several if task is GROUNDING_TASK else judges.ask)(task, items))
        finally:
            await judges.close()

    return asyncio.run(go())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is sent to the server, as it goes."""
    bodies: list[dict[str, Any]] = []
    arguments = OpenAITransport._body

    def noted(transport: OpenAITransport, call: Call, urls: Sequence[str], room: int) -> dict[str, Any]:
        bodies.append(arguments(transport, call, urls, room))
        return bodies[-1]

    monkeypatch.setattr(OpenAITransport, "_body", noted)
    return bodies


def test_extraction_is_a_structured_choice(config: Judge, sent: list[dict[str, Any]]) -> None:
    items = [ExtractionItem(str(n), ("left", "right"), span) for n, span in enumerate(["left", "to the right", "?"])]
    verdicts = judged(config, EXTRACTION_TASK, items)
    assert [verdict.failed for verdict in verdicts] == [False] * 3
    assert {verdict.label for verdict in verdicts} <= {"A", "B", "0"}
    assert all(body["structured_outputs"] == {"choice": ["A", "B", "0"]} for body in sent)


def test_consistency_is_json_of_a_schema(config: Judge, sent: list[dict[str, Any]]) -> None:
    items = [
        ConsistencyItem(
            str(n), "Is the red circle left or right of the blue square?", ("left", "right"), SENTENCE, answer
        )
        for n, answer in enumerate(["left", "right"] * 4)
    ]
    verdicts = judged(config, CONSISTENCY_TASK, items)
    assert all(v.label in CONSISTENCY_LABELS for v in verdicts), [v.reason for v in verdicts]
    assert all(body["response_format"]["type"] == "json_schema" for body in sent) and len(sent) == 2  # equal ones share


def pictured(greedy: list[Request]) -> list[GroundingItem]:
    contexts = ((), (SENTENCE,))
    return [
        GroundingItem(
            str(n), r.images, r.text, (SENTENCE, "The circle is red."), contexts, ((112, 112),) * len(r.images)
        )
        for n, r in enumerate(greedy[:8])
    ]


def test_pictures_as_base64_and_as_files(config: Judge, greedy: list[Request], sent: list[dict[str, Any]]) -> None:
    """One and two pictures; either way every sentence gets its label, and the same one."""
    items = pictured(greedy)
    assert {len(item.images) for item in items} == {1, 2}
    answers = judged(config, GROUNDING_TASK, items)
    assert [len(verdicts) for verdicts in answers] == [2] * len(items)
    assert {v.label for verdicts in answers for v in verdicts} <= set(GROUNDING_LABELS), answers
    starts = {part["image_url"]["url"][:7] for body in sent for part in body["messages"][0]["content"][:-1]}
    assert starts == {"data:im"}
    sent.clear()
    assert judged(config.model_copy(update={"images": "file"}), GROUNDING_TASK, items) == answers
    starts = {part["image_url"]["url"][:7] for body in sent for part in body["messages"][0]["content"][:-1]}
    assert starts == {"file://"} and len(sent) == len(items)


def test_a_file_that_the_server_may_not_open_is_a_failed_verdict(config: Judge, greedy: list[Request]) -> None:
    with TemporaryDirectory() as elsewhere:
        outside = Path(elsewhere) / "picture.png"
        outside.write_bytes(Path(greedy[0].images[0]).read_bytes())
        item = GroundingItem("x", (str(outside),), "Where?", (SENTENCE,), ((),), ((112, 112),))
        ((verdict,),) = judged(config.model_copy(update={"images": "file"}), GROUNDING_TASK, [item])
    assert verdict.failed and verdict.label is None and verdict.reason.startswith("HTTP 400")


def test_64_in_flight_and_a_second_pass_from_the_cache(
    config: Judge, greedy: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = most = 0
    send = Client._send

    async def counted(client: Client, *more: Any, **options: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await send(client, *more, **options)
        finally:
            now -= 1

    monkeypatch.setattr(Client, "_send", counted)
    many = config.model_copy(update={"concurrency": 64, "cache": str(tmp_path / "cache.sqlite"), "timeout_s": 600.0})
    spans = [ExtractionItem(str(n), ("left", "right"), f"span {n}") for n in range(96)]
    texts = [ConsistencyItem(str(n), "Where?", ("left", "right"), f"{SENTENCE} {n}", "left") for n in range(16)]

    def a_pass() -> tuple[list[Any], Meter]:
        async def go() -> tuple[list[Any], Meter]:
            judges = BACKEND(many, Path("data"))
            try:
                found = await asyncio.gather(
                    judges.ask(EXTRACTION_TASK, spans),
                    judges.ask(CONSISTENCY_TASK, texts),
                    judges.ask_several(GROUNDING_TASK, pictured(greedy)[:4]),
                )
                return list(found), judges.meter
            finally:
                await judges.close()

        return asyncio.run(go())

    found, meter = a_pass()
    assert most == 64
    assert meter.failed == {} and meter.requests == meter.calls == 116
    again, meter = a_pass()
    assert again == found
    assert (meter.requests, meter.cached, meter.calls) == (0, 116, 116)


def test_a_picture_too_many_is_a_failed_verdict_and_not_a_score(config: Judge, greedy: list[Request]) -> None:
    item = GroundingItem("many", greedy[0].images * 9, greedy[0].text, (SENTENCE,), ((),), ((112, 112),) * 9)
    ((verdict,),) = judged(config, GROUNDING_TASK, [item])
    assert verdict.failed
    assert verdict.label is None
