"""Endpoints: rate limits, rests and probes of those that are down, failing fast when all are, a cap on spending."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fgrpo.errors import UserError
from fgrpo.inference.endpoint import Pace
from fgrpo.inference.vllm_server import free_port
from judges.base import JudgeSet, build
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from tests.clock import FakeClock

YES = json.dumps({"why": "because", "label": "CONSISTENT"})


def items(start: int, stop: int) -> list[ConsistencyItem]:
    return [
        ConsistencyItem(str(n), f"Question {n}?", ("left", "right"), f"Reasoning {n}.", "left")
        for n in range(start, stop)
    ]


async def settled(judges: JudgeSet, is_settled: Any) -> None:
    """Ask new questions, one at a time, until `is_settled()`."""
    for n in range(2000):
        if is_settled():
            return
        await judges.ask(CONSISTENCY_TASK, items(10_000 + n, 10_001 + n))
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("per_minute", [1, 7, 60, 500, 3000])
def test_no_minute_holds_more_than_its_worth(per_minute: int) -> None:
    clock = FakeClock()
    pace, turns = Pace(per_minute, clock), []
    for n in range(3 * per_minute):
        clock.seconds += pace.take()
        turns.append(clock.seconds)
        if n == per_minute:
            clock.seconds += 90.0  # a pause must not save up turns
    assert all(later - turn >= 60.0 for turn, later in zip(turns, turns[per_minute:], strict=False))
    assert turns[-1] - turns[0] < 62.0 * 3 + 90.0 + 1e-6  # and it does not dawdle


def test_an_unused_reservation_is_given_back() -> None:
    clock = FakeClock()
    thrifty, wasteful = Pace(1000, clock), Pace(1000, clock)
    for _ in range(5):
        thrifty.take(500)
        thrifty.give_back(490)
        wasteful.take(500)
    assert thrifty.take(500) == pytest.approx(50 * 0.062 - 1.0)
    assert wasteful.take(500) == pytest.approx(2500 * 0.062 - 1.0)
    assert Pace(None).take(10**9) == 0.0


@pytest.mark.parametrize("limit", [{"requests_per_minute": 1240}, {"tokens_per_minute": 1240 * 500}])
def test_requests_are_spread_over_the_minute(limit: dict[str, int], fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: YES) as server:
            config = judge_config(server.url, concurrency=64, **limit)
            judges = build(config, "unused")
            begin = time.monotonic()
            if "tokens_per_minute" in limit:  # a server that reports no usage is charged the reservation
                server.behave = lambda n, body: {"body": _without_usage()}
            assert not any(v.failed for v in await judges.ask(CONSISTENCY_TASK, items(0, 50)))
            # requests: 20 in the first burst, then 20 a second; tokens: as many of 500, and a call is set aside at a little more
            took, each = time.monotonic() - begin, (judges.meter.prompt_tokens + judges.meter.completion_tokens) / 50
            assert took >= (1.3 if "requests_per_minute" in limit else 48 * each / (20 * 500) - 1.0) > 1.0
            await judges.close()

    asyncio.run(go())


def _without_usage() -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": YES}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


def test_a_dead_endpoint_is_left_alone_and_found_again(fault_server: Any, judge_config: Any) -> None:
    port = free_port()

    async def go() -> None:
        async with fault_server(lambda n, body: YES) as server:
            judges = build(judge_config(f"http://127.0.0.1:{port}", server.url, attempts=12), "unused")
            verdicts = await judges.ask(CONSISTENCY_TASK, items(0, 300))
            assert not any(v.failed for v in verdicts)
            tried = judges.meter.faults["no connection"]
            assert 5 <= tried < 60, "the dead endpoint got request after request"
            async with fault_server(lambda n, body: YES, port) as back:
                await settled(judges, lambda: len(back.bodies) > 3)
                await judges.close()

    asyncio.run(go())


def test_when_all_are_down_calls_wait_and_then_fail_at_once(fault_server: Any, judge_config: Any) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"

    async def go() -> None:
        judges = build(judge_config(url, attempts=100, concurrency=4, patience_s=0.5), "unused")
        verdicts = await judges.ask(CONSISTENCY_TASK, items(0, 40))
        assert all(v.failed and v.label is None for v in verdicts)
        assert judges.meter.failed == {"endpoints down": 40}
        assert verdicts[0].reason.startswith("endpoints down: no answer for ")
        assert url in verdicts[0].reason and "is a server running there?" in verdicts[0].reason
        asked = judges.meter.requests
        assert asked < 60  # not 40 x 100
        begin = time.monotonic()
        await judges.ask(CONSISTENCY_TASK, items(40, 240))
        assert judges.meter.requests - asked < 20 and judges.meter.failed["endpoints down"] > 200
        assert time.monotonic() - begin < 60
        async with fault_server(lambda n, body: YES, port) as server:
            await settled(judges, lambda: len(server.bodies) > 0)
            assert not any(v.failed for v in await judges.ask(CONSISTENCY_TASK, items(300, 320)))
            await judges.close()

    asyncio.run(go())


def test_a_hiccup_shorter_than_the_patience_costs_no_verdict(fault_server: Any, judge_config: Any) -> None:
    port = free_port()

    async def go() -> None:
        judges = build(judge_config(f"http://127.0.0.1:{port}", attempts=100, patience_s=300.0), "unused")
        asking = asyncio.create_task(judges.ask(CONSISTENCY_TASK, items(0, 60)))
        while not judges.meter.faults:
            await asyncio.sleep(0.01)
        async with fault_server(lambda n, body: YES, port):
            assert not any(v.failed for v in await asking)
            await judges.close()

    asyncio.run(go())


def test_an_endpoint_without_the_model_is_named_with_what_it_serves(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: 404) as server:
            judges = build(judge_config(server.url, model="another-model"), "unused")
            says = re.escape(f"the judge at {server.url} does not serve 'another-model'; it serves: served-model")
            with pytest.raises(UserError, match=says):
                await judges.ask(CONSISTENCY_TASK, items(0, 5))
            await judges.close()

    asyncio.run(go())


def test_a_server_without_usage_cannot_pass_the_cap(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: {"body": _without_usage()}) as server:
            judges = build(judge_config(server.url, token_cap=6000), "unused")
            verdicts = await judges.ask(CONSISTENCY_TASK, items(0, 60))
            assert 0 < len(server.bodies) < 30 and sum(v.failed for v in verdicts) == 60 - len(server.bodies)
            assert 0 < judges.meter.prompt_tokens + judges.meter.completion_tokens <= 6000
            await judges.close()

    asyncio.run(go())


def test_a_cap_stops_cleanly_and_outlives_the_process(fault_server: Any, judge_config: Any, tmp_path: Path) -> None:
    """Each reply costs 1; a call reserves more than that, so the cap is never passed."""
    priced = {"prompt_price": 100_000.0, "completion_price": 100_000.0, "concurrency": 2}

    async def go() -> None:
        async with fault_server(lambda n, body: YES) as server:

            async def spend(cap: float, start: int, stop: int) -> JudgeSet:
                judges = build(judge_config(server.url, money_cap=cap, **priced), "unused", tmp_path)
                verdicts = await judges.ask(CONSISTENCY_TASK, items(start, stop))
                assert len(verdicts) == stop - start
                for v in verdicts:
                    assert not v.failed or (v.label is None and v.reason.startswith("spend cap: the cap of "))
                await judges.close()
                return judges

            first = await spend(400.0, 0, 500)
            assert first.meter.money == pytest.approx(len(server.bodies)) and 200 < len(server.bodies) <= 400
            assert first.meter.failed == {"spend cap": 500 - len(server.bodies)}
            assert "the cap of 400 on what served-model may cost" in (first.meter.stopped or "")
            asked = len(server.bodies)
            again = await spend(float(asked), 500, 510)  # another process, the same folder: nothing is left
            assert len(server.bodies) == asked and again.meter.money == pytest.approx(asked)
            await spend(1000.0, 500, 510)
            assert len(server.bodies) == asked + 10
            with pytest.raises(UserError, match="prompt_price and completion_price"):
                build(judge_config(server.url, money_cap=1.0), "unused", tmp_path)

    asyncio.run(go())
    assert len((tmp_path / "spend.jsonl").read_text().splitlines()) > 200
