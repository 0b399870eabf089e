"""Backends found by file name, the oracle's extraction, recording and replay, and the shared cache."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import queue
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eval.extraction import EXTRACTION_TASK, ExtractionItem
from fgrpo.errors import UserError
from fgrpo.schema import Judge
from fgrpo.types import Verdict
from judges import JudgeSet, build, names
from judges.backends.replay import record
from judges.backends.vllm import Engine, VLLMTransport, _Pending
from judges.base import Meter, failed_verdict
from judges.cache import Cache
from judges.cached_client import CachedClient
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_TASK, GroundingItem


def config(backend: str, model: str = "m") -> Judge:
    return Judge(
        backend=backend, model=model, max_completion_tokens=1, concurrency=1, endpoints=("http://127.0.0.1:9/v1",)
    )


def test_backends_are_found_by_file() -> None:
    assert set(names()) >= {"openai", "oracle", "replay"}
    with pytest.raises(UserError, match="did you mean 'oracle'"):
        build(config("oracel"), "unused")


SPANS = [
    ("left", ("left", "right"), "A"),
    ("B", ("left", "right"), "B"),
    ("(b) right.", ("left", "right"), "B"),
    ("2", ("one", "two"), "B"),
    ("not left", ("left", "right"), "0"),
    ("A. right", ("left", "right"), "0"),
    ("green", ("left", "right"), "0"),
    ("", ("left", "right"), "0"),
    ("left", ("left", "left"), "0"),
]


@pytest.mark.parametrize(("span", "choices", "label"), SPANS)
def test_oracle_extraction(span: str, choices: tuple[str, ...], label: str) -> None:
    (verdict,) = asyncio.run(
        build(config("oracle"), "unused").ask(EXTRACTION_TASK, [ExtractionItem("x", choices, span)])
    )
    assert verdict.label == label


class Fixed:
    """Verdicts by task name, the same for each call."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers

    async def answer(self, task: Any, items: Any) -> list[Any]:
        return self.answers[task.name][: len(items)]


def test_one_task_can_be_answered_by_other_judges() -> None:
    closed: list[str] = []

    def judges(name: str, label: str) -> JudgeSet:
        async def close() -> None:
            closed.append(name)

        answers = Fixed(consistency=[(Verdict(label),)], extraction=[(Verdict(label),)])
        return JudgeSet(answers, name, has_prompts=name == "model", meter=Meter(name=name), close=close)

    both = judges("exact", "CONSISTENT").with_task(EXTRACTION_TASK, judges("model", "A"))

    async def go() -> None:
        assert await both.ask(CONSISTENCY_TASK, ["item"]) == [Verdict("CONSISTENT")]  # type: ignore[list-item]
        assert await both.judge(EXTRACTION_TASK).judge(["item"]) == [Verdict("A")]  # type: ignore[list-item]
        await both.close()

    asyncio.run(go())
    assert closed == ["exact", "model"] and [meter.name for meter in both.meters] == ["exact", "model"]
    assert both.prompt_hashes([CONSISTENCY_TASK, EXTRACTION_TASK]) == {"extraction": EXTRACTION_TASK.prompt_hash}


def test_several_verdicts_are_not_taken_for_one() -> None:
    judges = JudgeSet(Fixed(grounding=[(Verdict("CORRECT"), Verdict("SKIP"))]))
    with pytest.raises(ValueError, match="'grounding' has several verdicts per item; use ask_several"):
        asyncio.run(judges.ask(GROUNDING_TASK, ["item"]))  # type: ignore[list-item]


def test_what_was_recorded_is_replayed_by_content(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"pixels")
    (tmp_path / "same.png").write_bytes(b"pixels")
    asked = ConsistencyItem("a", "q?", ("left",), "think", "left")
    lost = ConsistencyItem("b", "q?", ("left",), "other", "left")
    seen = GroundingItem("g", (str(tmp_path / "p.png"),), "q?", ("A.", "B."), ((), ("A.",)))
    two = (Verdict("CORRECT", "why", judge="x", prompt_hash="h"), Verdict("SKIP"))
    live = JudgeSet(Fixed(consistency=[(Verdict("CONSISTENT"),), (failed_verdict("time-out"),)], grounding=[two]))
    path = tmp_path / "verdicts.jsonl"

    async def go() -> None:
        recorder = record(live, path)
        await recorder.ask(CONSISTENCY_TASK, [asked, lost])
        await recorder.ask(CONSISTENCY_TASK, [asked])
        await recorder.ask_several(GROUNDING_TASK, [seen])
        await recorder.close()
        replay = build(config("replay", str(path)), "unused")
        renamed = dataclasses.replace(asked, id="another")
        good, bad = await replay.ask(CONSISTENCY_TASK, [renamed, lost])
        assert good == Verdict("CONSISTENT")
        assert bad.failed and bad.reason == "not recorded"
        moved = dataclasses.replace(seen, images=(str(tmp_path / "same.png"),))
        assert await replay.ask_several(GROUNDING_TASK, [moved]) == [two]
        (unknown,) = await replay.ask(EXTRACTION_TASK, [ExtractionItem("x", ("left",), "left")])
        assert unknown.failed
        assert replay.meter.failed == {"not recorded": 2}

    asyncio.run(go())
    assert len(path.read_text().splitlines()) == 2


def test_replay_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        build(config("replay", str(tmp_path / "none.jsonl")), "unused")
    for line in ('{"id": "x"}', '{"id": "x", "verdicts": [{"reason": "no label"}]}', '{"id": "x", "verdicts": 3}'):
        (tmp_path / "odd.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"odd\.jsonl holds a line that is no recorded verdict"):
            build(config("replay", str(tmp_path / "odd.jsonl")), "unused")


def _write(path: str, worker: int) -> int:
    cache = Cache(path)
    for n in range(200):
        if cache.get(f"k{n}") is None:
            cache.put(f"k{n}", "consistency", "m", f"reply {n}")
        assert cache.get(f"k{n}") == f"reply {n}"
    return worker


def test_a_cancelled_call_does_not_end_the_engines_thread() -> None:
    """vLLM's own part is left out: what is under test is the thread that answers."""
    engine = Engine.__new__(Engine)
    engine._waiting = queue.Queue()
    answered: list[int] = []

    def answer(batch: list[_Pending]) -> None:
        for asked in batch:
            answered.append(asked.max_tokens)
            asked.reply.set_result("said")

    engine._answer = answer  # type: ignore[method-assign]
    call = EXTRACTION_TASK.call(ExtractionItem("x", ("left",), "left"))
    asked = [_Pending(call, (), n) for n in range(3)]
    assert asked[1].reply.cancel()
    for one in (*asked, None):
        engine._waiting.put(one)
    engine._work()
    assert answered == [0, 2] and asked[2].reply.result() == "said"


def test_several_processes_share_one_cache(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.sqlite")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.starmap(_write, [(path, n) for n in range(4)]) == [0, 1, 2, 3]
    assert len(Cache(path)) == 200


def test_a_cache_that_breaks_under_way_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = Cache(path)
    cache.put("k", "consistency", "m", "reply")
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE replies")
    for use in (lambda: cache.get("k"), lambda: cache.put("k", "", "m", "x"), lambda: cache.put("k", "", "m", "x")):
        with pytest.raises(UserError, match=r"the judge cache .*cache\.sqlite failed \(no such table"):
            use()
    assert Cache(path).claim("k", 10.0)  # no transaction is left open, so others are not blocked


def test_another_engine_is_another_judge(tmp_path: Path) -> None:
    call = EXTRACTION_TASK.call(ExtractionItem("x", ("left",), "left"))
    keys = set()
    for engine in ({}, {"revision": "a"}, {"revision": "b"}):
        judge = config("vllm").model_copy(update={"engine": engine})
        meter = Meter()
        keys.add(CachedClient(judge, meter, VLLMTransport(judge, meter))._key_of(call, ()))
    assert len(keys) == 3


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"this is text" * 100)
    with pytest.raises(UserError, match=r"x\.sqlite"):
        Cache(tmp_path / "x.sqlite")
