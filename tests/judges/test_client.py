"""One client for sampling and judging: the same fault has the same consequence for both, and one circuit breaker serves both."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from eval.extraction import EXTRACTION_TASK, ExtractionItem
from fgrpo.errors import UserError
from fgrpo.inference.base import Request, SamplingError, Unreachable
from fgrpo.inference.budget import UsageMeter
from fgrpo.inference.client import Client
from fgrpo.inference.endpoint import FAILURES_WITH_OTHERS, Endpoint
from fgrpo.inference.failures import ENDPOINTS_DOWN, NO_CONNECTION, RequestFailed, classify
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.vllm_server import free_port
from judges.base import Meter
from judges.client import OpenAITransport, Unanswered

MODEL = "served-model"
KEY = "sk-secret-456"
CALL = EXTRACTION_TASK.call(ExtractionItem("x", ("left", "right"), "the former"), "model")


@dataclass
class Caller:
    """A sampler or a judge: sends one request, and shows its client and its meter."""

    ask: Callable[[], Awaitable[object]]
    client: Client
    meter: UsageMeter


def sampling(*urls: str, attempts: int = 3, patience_s: float = 30.0) -> Caller:
    sampler = OpenAISampler(
        urls,
        MODEL,
        forbidden=(),
        concurrency=10,
        attempts=attempts,
        patience_s=patience_s,
        longest_wait_s=0.5,
        rest_s=0.1,
    )
    return Caller(lambda: sampler.sample(Request((), "Where?")), sampler._client, sampler.meter)


def judging(config: Callable[..., Any], *urls: str, attempts: int = 3, patience_s: float = 30.0) -> Caller:
    meter = Meter()
    judge = config(*urls, attempts=attempts, patience_s=patience_s, concurrency=10)
    transport = OpenAITransport(judge, meter)
    return Caller(lambda: transport.ask(CALL, ()), transport._client, meter)


@pytest.fixture(params=["sampler", "judge"])
def caller(request: pytest.FixtureRequest, judge_config: Any) -> Callable[..., Caller]:
    """Makes a sampler or a judge of some addresses."""
    return sampling if request.param == "sampler" else lambda *urls, **more: judging(judge_config, *urls, **more)


def error(message: str, **more: str) -> str:
    return json.dumps({"error": {"message": message, **more}})


# fault, how often (None: always), requests sent, kind of the faults, what the error says (None: a reply came)
FAULTS: dict[str, tuple[Any, int | None, int, str, str | None]] = {
    "429": ({"status": 429, "headers": {"Retry-After": "0.3"}, "body": "{}"}, 1, 2, "HTTP 429", None),
    "408": (408, 1, 2, "HTTP 408", None),
    "500": (500, 1, 2, "HTTP 500", None),
    "500 for good": (500, None, 3, "HTTP 500", "status 500"),
    "cut": ({"cut": True}, 1, 2, "no connection", None),
    "page": ({"body": "<html>gateway</html>", "headers": {"Content-Type": "text/html"}}, 1, 2, "no JSON", None),
    "half": ({"body": '{"id": "x", "object": "chat.comp'}, 1, 2, "no JSON", None),
    "400": (400, None, 1, "HTTP 400", "status 400"),
    "422": ({"status": 422, "body": error(f"Bearer {KEY}")}, None, 1, "HTTP 422", "Bearer ***"),
    "401": (401, None, 1, "HTTP 401", "refuses the key in OPENAI_API_KEY (HTTP 401); set a valid one"),
    "403": (403, None, 1, "HTTP 403", "refuses the key in OPENAI_API_KEY (HTTP 403); set a valid one"),
    "404": (404, None, 1, "HTTP 404", f"does not serve '{MODEL}'; it serves: {MODEL} (HTTP 404)"),
    "quota": (
        {"status": 429, "body": error("no money", code="insufficient_quota")},
        None,
        1,
        "HTTP 429",
        "the quota of the key in OPENAI_API_KEY",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_sampler_and_judge_classify_a_fault_alike(
    name: str, caller: Callable[..., Caller], fault_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, times, requests, kind, message = FAULTS[name]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def go() -> None:
        async with fault_server(lambda n, body: fault if times is None or n < times else "A") as server:
            one, started = caller(server.url), time.monotonic()
            if message is None:
                assert await one.ask()
            else:
                with pytest.raises((SamplingError, Unanswered, UserError)) as raised:
                    await one.ask()
                assert message in str(raised.value) and KEY not in str(raised.value)
                assert not isinstance(raised.value, Unreachable)
            assert name != "429" or time.monotonic() - started >= 0.3
            assert len(server.bodies) == requests == one.meter.retries + 1
            assert one.meter.faults == {kind: requests if message else requests - 1}
            assert set(server.authorizations) == {f"Bearer {KEY}"}
            await one.client.close()

    asyncio.run(go())


def test_every_status_has_one_action() -> None:
    request = httpx.Request("POST", "http://x")

    def action(status: int, code: str | None = None) -> tuple[str, bool]:
        reply = httpx.Response(status, headers={"retry-after": "7"}, request=request)
        failure = classify(openai.APIStatusError("x", response=reply, body={"code": code}))
        assert failure is not None and failure.after_s == 7.0
        return failure.action, failure.is_alive

    assert {action(status) for status in (408, 409, 429)} == {("retry", True)}
    assert {action(status) for status in (500, 502, 503, 529)} == {("retry", False)}
    assert {action(status) for status in (400, 405, 413, 415, 422)} == {("refuse", True)}
    assert {action(status) for status in (401, 403, 404)} == {("stop", True)}
    assert {action(status, "insufficient_quota") for status in (429, 500)} == {("stop", True)}
    lost = [TimeoutError(), openai.APITimeoutError(request), json.JSONDecodeError("x", "x", 0), "<html>"]
    lost.append(openai.APIConnectionError(request=request))
    failures = [classify(result) for result in lost]
    assert [f and (f.action, f.is_alive) for f in failures] == [("retry", False)] * 5
    assert [f and f.is_unreachable for f in failures] == [False] * 4 + [True]


async def _body(endpoint: Endpoint) -> dict[str, Any]:
    return {"model": MODEL, "messages": []}


def test_a_circuit_opens_and_closes_alike(caller: Callable[..., Caller], fault_server: Any) -> None:
    """Ten failures in a row open it; while it is open, one request at a time probes; one answer closes it."""
    port = free_port()

    async def go() -> None:
        one = caller(f"http://127.0.0.1:{port}", attempts=1, patience_s=0.4)
        client = one.client

        async def kind() -> str | None:
            try:
                await client.complete(_body, (1, 1))
            except RequestFailed as error:
                return error.failure.kind
            return None

        assert {await kind() for _ in range(9)} == {NO_CONNECTION}
        (endpoint,) = client._loop().endpoints
        assert endpoint.down_since is None
        assert await kind() == NO_CONNECTION and endpoint.down_since is not None
        sent = one.meter.requests
        kinds = await asyncio.gather(*(kind() for _ in range(40)))  # wait out the patience, then fail at once
        assert kinds.count(ENDPOINTS_DOWN) > 20 and one.meter.requests - sent < 20
        async with fault_server(lambda n, body: {"text": "A", "wait": 0.05}, port) as server:
            while endpoint.down_since is not None:
                await kind()
                await asyncio.sleep(0.01)
            assert server.most_in_flight == 1  # the probe alone
            assert await asyncio.gather(*(kind() for _ in range(10))) == [None] * 10
            assert server.most_in_flight > 1
            await client.close()

    asyncio.run(go())


def test_a_restarting_endpoint_is_waited_for_longer_than_its_attempts(
    caller: Callable[..., Caller], fault_server: Any
) -> None:
    async def go() -> None:
        never_seen = caller(f"http://127.0.0.1:{free_port()}", attempts=1)  # rather a wrong address than a restart
        with pytest.raises((Unreachable, Unanswered)):
            await never_seen.ask()
        await never_seen.client.close()
        async with fault_server(lambda n, body: {"cut": True} if 0 < n < 5 else "A") as server:
            one = caller(server.url, attempts=1)
            assert await one.ask() and await one.ask()
            assert (len(server.bodies), one.meter.faults) == (6, {NO_CONNECTION: 4})
            await one.client.close()
        async with fault_server(lambda n, body: {"cut": True} if n > 0 else "A") as server:
            impatient = caller(server.url, attempts=1, patience_s=0.1)
            assert await impatient.ask()
            with pytest.raises((Unreachable, Unanswered)):
                await impatient.ask()
            await impatient.client.close()

    asyncio.run(go())


def test_a_retry_goes_elsewhere(caller: Callable[..., Caller], fault_server: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: "A") as server:
            one = caller("http://127.0.0.1:9/v1", server.url, attempts=2)
            for _ in range(12):
                assert await one.ask()
            assert FAILURES_WITH_OTHERS <= one.meter.faults[NO_CONNECTION] == one.meter.retries
            await one.client.close()

    asyncio.run(go())


def test_a_stop_fails_later_calls_of_a_judge_unsent_and_of_a_sampler_one_by_one(
    judge_config: Any, fault_server: Any
) -> None:
    """Callers of a sampler count refusals themselves; a judge's callers get one clear error."""

    async def go() -> None:
        async with fault_server(lambda n, body: 401 if n < 2 else "A") as server:
            judge, sampler = judging(judge_config, server.url), sampling(server.url)
            for _ in range(2):
                with pytest.raises(UserError, match=r"the judge at .* refuses the key"):
                    await judge.ask()
            assert len(server.bodies) == 1
            with pytest.raises(SamplingError, match=r"the endpoint at .* refuses the key"):
                await sampler.ask()
            assert await sampler.ask()
            await judge.client.close()
            await sampler.client.close()

    asyncio.run(go())
