"""How well 64 slots are used while three requests in ten go wrong, by a clock that jumps: no machine is too slow for it."""

from __future__ import annotations

import asyncio
import json
import random
import selectors
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fgrpo.inference.client import Client
from judges.backends.openai import BACKEND
from judges.base import Meter
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem

SLOTS, ROLLOUTS, SERVICE_S, LIMIT_S = 64, 2000, 0.5, 4.0
ROLLOUT: ContextVar[int] = ContextVar("ROLLOUT")
YES = json.dumps({"why": "", "label": "CONSISTENT"})


class JumpingSelector(selectors.DefaultSelector):
    """Never waits: the time that it was to wait is over."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class Connection:
    """Stands in for the connection: takes a while, then answers or fails as a server would.

    `busy_s` is what it occupied, `chain_s` the same for each rollout, whose attempts cannot run beside each other.
    """

    def __init__(self) -> None:
        self.rng = random.Random(0)
        self.busy_s, self.now, self.most = 0.0, 0, 0
        self.chain_s: Counter[int] = Counter()

    async def post(self, path: str, **_: Any) -> bytes:
        begin = asyncio.get_running_loop().time()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(SERVICE_S)
            return await self._outcome()
        finally:
            self.now -= 1
            took = asyncio.get_running_loop().time() - begin
            self.busy_s += took
            self.chain_s[ROLLOUT.get()] += took

    async def _outcome(self) -> bytes:
        if self.rng.random() > 0.3:
            message = {"role": "assistant", "content": YES}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return json.dumps({"choices": [choice]}).encode()
        request = httpx.Request("POST", "http://x")
        kind = self.rng.randrange(6)
        if kind == 0:
            await asyncio.sleep(1000.0)
        if kind == 1:
            raise openai.APIConnectionError(request=request)  # type: ignore[arg-type]
        if kind == 2:
            return b"<html>"
        status = (500, 503, 429)[kind % 3]
        headers = {"retry-after": "1"} if status == 429 else {}
        answer = httpx.Response(status, headers=headers, request=request)
        error = openai.RateLimitError if status == 429 else openai.InternalServerError
        raise error("x", response=answer, body=None)  # type: ignore[arg-type]

    async def close(self) -> None:
        pass


def test_faults_cost_hardly_more_than_they_must(judge_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """99% of the rollouts have their verdicts within 1.1 times what all requests occupy of the slots, time-outs included.

    The last one may take the longest chain of attempts and waits of a single rollout more: it can be among the last to begin,
    and nobody knows beforehand which it will be (Graham's bound for lists of jobs).
    """
    connection, made = Connection(), Client._endpoint

    def stubbed(self: Client, *more: Any) -> Any:
        endpoint = made(self, *more)
        endpoint.connection = connection  # type: ignore[assignment]
        return endpoint

    def waiting(self: Meter, seconds: float) -> None:
        connection.chain_s[ROLLOUT.get()] += seconds
        waits(self, seconds)

    waits = Meter.wait
    monkeypatch.setattr(Meter, "wait", waiting)
    monkeypatch.setattr(Client, "_endpoint", stubbed)
    random.seed(0)  # of the back-off
    config = judge_config("http://x/v1", concurrency=SLOTS, attempts=14, timeout_s=LIMIT_S, backoff_s=0.5)
    done: list[float] = []

    async def go() -> Meter:
        judges, clock = BACKEND(config, Path()), asyncio.get_running_loop()

        async def one(n: int) -> None:
            ROLLOUT.set(n)
            item = ConsistencyItem(str(n), "Where?", ("left", "right"), f"Trace {n}.", "left")
            (verdict,) = await judges.ask(CONSISTENCY_TASK, [item])
            assert verdict.label == "CONSISTENT"
            done.append(clock.time())

        await asyncio.gather(*map(one, range(ROLLOUTS)))
        return judges.meter

    loop = JumpingLoop()
    try:
        meter = loop.run_until_complete(go())
    finally:
        loop.close()
    assert sum(meter.faults.values()) == meter.retries > 700 and meter.faults["time-out"] > 100
    assert connection.most == SLOTS and len(done) == ROLLOUTS
    slots, chain = connection.busy_s / SLOTS, max(connection.chain_s.values())
    nearly_all, wall = sorted(done)[ROLLOUTS * 99 // 100], max(done)
    print(
        f"slots {slots:.1f} s, longest chain {chain:.1f} s, 99% {nearly_all:.1f} s, all {wall:.1f} s, waited {meter.waited_s:.0f} s"
    )
    assert nearly_all <= 1.1 * slots
    assert wall <= slots + chain
