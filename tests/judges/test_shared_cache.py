"""Several processes judge the same rollouts with one cache: no request is sent twice, no process waits for a dead one."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import judges.cache
from fgrpo.schema import Judge
from judges.base import build
from judges.cache import Cache
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from tests.loopback import Replies, serving

ROLLOUTS, PROCESSES = 60, 3


class Counting(Replies):
    """Says of rollout n what its number dictates, after a while; counts who was asked about."""

    asked: ClassVar[Counter[int]] = Counter()
    lock = threading.Lock()

    def do_POST(self) -> None:
        number = int(re.search(r"Reasoning (\d+)", self.body()).group(1))  # type: ignore[union-attr]
        with self.lock:
            self.asked[number] += 1
        self.verdict("INCONSISTENT" if number % 3 else "CONSISTENT")


@pytest.fixture
def url() -> Iterator[str]:
    Counting.asked = Counter()
    with serving(Counting) as address:
        yield address


def _judge(url: str, cache: str, seed: int) -> tuple[list[str | None], int]:
    config = Judge(
        backend="openai",
        model="m",
        endpoints=(url,),
        max_completion_tokens=64,
        concurrency=16,
        cache=cache,
        timeout_s=120,
    )
    order = random.Random(seed).sample(range(ROLLOUTS), ROLLOUTS)
    items = [ConsistencyItem(str(n), "Where?", ("left", "right"), f"Reasoning {n}.", "left") for n in order]

    async def go() -> tuple[list[str | None], int]:
        judges = build(config, "unused")
        try:
            labels = {n: v.label for n, v in zip(order, await judges.ask(CONSISTENCY_TASK, items), strict=True)}
            return [labels[n] for n in range(ROLLOUTS)], judges.meter.requests - judges.meter.retries
        finally:
            await judges.close()

    return asyncio.run(go())


@pytest.mark.slow
def test_processes_ask_every_question_once(url: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache.sqlite")
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        found = pool.starmap(_judge, [(url, cache, seed) for seed in range(PROCESSES)])
    wanted = ["INCONSISTENT" if n % 3 else "CONSISTENT" for n in range(ROLLOUTS)]
    assert [labels for labels, _ in found] == [wanted] * PROCESSES
    assert Counting.asked == dict.fromkeys(range(ROLLOUTS), 1)
    assert sum(requests for _, requests in found) == ROLLOUTS == len(Cache(cache))


def test_no_request_while_another_process_is_still_trying(fault_server: Any, judge_config: Any, tmp_path: Path) -> None:
    """Time-outs and retries of the first one outlast one request's time; the second one waits for its reply all the same."""
    good = json.dumps({"why": "", "label": "CONSISTENT"})
    item = ConsistencyItem("x", "Where?", ("left", "right"), "It is left.", "left")

    async def go() -> None:
        async with fault_server(lambda n, body: {"text": good, "wait": 100.0} if n < 2 else good) as server:
            given = judge_config(server.url, cache=str(tmp_path / "cache.sqlite"), timeout_s=1.0)
            first, second = build(given, "unused"), build(given, "unused")
            asking = asyncio.create_task(first.ask(CONSISTENCY_TASK, [item]))
            while not server.bodies:
                await asyncio.sleep(0.01)
            (verdict,) = await second.ask(CONSISTENCY_TASK, [item])
            assert (await asking)[0].label == verdict.label == "CONSISTENT"
            assert first.meter.requests >= 3 and (second.meter.requests, second.meter.cached) == (0, 1)
            await first.close()
            await second.close()

    asyncio.run(go())


def _claim_and_die(path: str) -> None:
    assert Cache(path).claim("k", 1000.0)


def test_a_dead_process_blocks_no_other(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.sqlite")
    mine = Cache(path)
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert mine.claim("k", 1000.0)  # its process is gone
    assert not Cache(path).claim("k", 1000.0)  # ours is not
    mine.release("k")
    assert Cache(path).claim("k", -1.0)
    assert mine.claim("k", 1000.0)  # its time is over
    mine.put("k", "consistency", "m", "reply")
    assert mine.get("k") == "reply" and mine.claim("k", 1.0)  # the claim went with the reply


def test_a_claim_of_a_process_whose_id_was_used_again_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process runs, but it started later than the one that claimed."""
    first, second = Cache(tmp_path / "c.sqlite"), Cache(tmp_path / "c.sqlite")
    assert first.claim("k", 1000.0) and not second.claim("k", 1000.0)
    started = judges.cache._start_of
    monkeypatch.setattr(judges.cache, "_start_of", lambda pid: started(pid) + 1.0)
    assert not second.claim("k", 1000.0)  # within what a clock may be set by
    monkeypatch.setattr(judges.cache, "_start_of", lambda pid: started(pid) + 60.0)
    assert second.claim("k", 1000.0)


def test_a_judge_behind_an_endpoint_keeps_its_replies_in_the_run(url: str, tmp_path: Path) -> None:
    """By default; without a run, or with null, nothing is kept."""

    async def ask(run: Path | None, **more: Any) -> int:
        Counting.asked.clear()
        config = Judge(backend="openai", model="m", endpoints=(url,), max_completion_tokens=64, concurrency=4, **more)
        built = build(config, "unused", run)
        items = [ConsistencyItem(str(n), "Where?", ("left", "right"), f"Reasoning {n}.", "left") for n in range(5)]
        await built.ask(CONSISTENCY_TASK, items)
        await built.close()
        return sum(Counting.asked.values())

    run = tmp_path / "run"
    run.mkdir()
    assert [asyncio.run(ask(run)), asyncio.run(ask(run))] == [5, 0]
    assert (run / "judge_replies.sqlite").exists()
    assert [asyncio.run(ask(run, cache=None)), asyncio.run(ask(None)), asyncio.run(ask(None))] == [5, 5, 5]
    oracle = build(Judge(backend="oracle", model="oracle", max_completion_tokens=1, concurrency=1), "unused", run)
    assert oracle.name and not list(run.glob("oracle*"))
