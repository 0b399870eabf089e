"""One client for sampling and judging: the same fault has the same consequence for both, and one circuit breaker serves both."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
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
from fgrpo.inference.clock import SYSTEM, Clock
from fgrpo.inference.connection import variable_for
from fgrpo.inference.endpoint import FAILURES_WITH_OTHERS, Endpoint
from fgrpo.inference.failures import CERTIFICATE, ENDPOINTS_DOWN, NO_CONNECTION, RequestFailed, classify
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.vllm_server import free_port
from judges.base import Meter
from judges.client import OpenAITransport, Unanswered
from tests.clock import FakeClock
from tests.loopback import Replies, serving

MODEL = "served-model"
KEY = "sk-secret-456"
CALL = EXTRACTION_TASK.call(ExtractionItem("x", ("left", "right"), "the former"), "model")


@dataclass
class Caller:
    """A sampler or a judge: sends one request, and shows its client and its meter."""

    ask: Callable[[], Awaitable[object]]
    client: Client
    meter: UsageMeter


def sampling(*urls: str, attempts: int = 3, patience_s: float = 30.0, clock: Clock = SYSTEM) -> Caller:
    sampler = OpenAISampler(
        urls,
        MODEL,
        forbidden=(),
        concurrency=10,
        attempts=attempts,
        patience_s=patience_s,
        longest_wait_s=0.5 if clock is SYSTEM else 30.0,
        rest_s=0.1,
        clock=clock,
        key_variable="OPENAI_API_KEY",
    )
    return Caller(lambda: sampler.sample(Request((), "Where?")), sampler._client, sampler.meter)


def judging(
    config: Callable[..., Any], *urls: str, attempts: int = 3, patience_s: float = 30.0, clock: Clock = SYSTEM
) -> Caller:
    meter = Meter()
    waits = {} if clock is SYSTEM else {"backoff_s": 4.0}
    judge = config(
        *urls, attempts=attempts, patience_s=patience_s, concurrency=10, api_key_env="OPENAI_API_KEY", **waits
    )
    transport = OpenAITransport(judge, meter, clock)
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
    "cut": ({"cut": True}, 1, 2, "no connection", None),
    "page": ({"body": "<html>gateway</html>", "headers": {"Content-Type": "text/html"}}, 1, 2, "no JSON", None),
    "half": ({"body": '{"id": "x", "object": "chat.comp'}, 1, 2, "no JSON", None),
    "400": (400, None, 1, "HTTP 400", "status 400"),
    "422": ({"status": 422, "body": error(f"Bearer {KEY}")}, None, 1, "HTTP 422", "Bearer ***"),
    "401": (401, None, 1, "HTTP 401", "refuses the key in OPENAI_API_KEY (HTTP 401); set a valid one"),
    "403": (403, None, 1, "HTTP 403", "refuses the key in OPENAI_API_KEY (HTTP 403); set a valid one"),
    "402": (402, None, 1, "HTTP 402", "requires a payment (HTTP 402: Error code: 402 - status 402); pay, then rerun"),
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
            clock = FakeClock()
            one = caller(server.url, clock=clock)
            if message is None:
                assert await one.ask()
            else:
                with pytest.raises((SamplingError, Unanswered, UserError)) as raised:
                    await one.ask()
                assert message in str(raised.value) and KEY not in str(raised.value)
                assert not isinstance(raised.value, Unreachable)
            assert name != "429" or clock.slept >= 0.3
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
        assert failure.after_s == 7.0 and failure.by_time == (failure.action == "retry")
        return failure.action, failure.is_alive

    assert {action(status) for status in (408, 409, 425, 429)} == {("retry", True)}
    assert {action(status) for status in (404, 500, 502, 503, 529)} == {("retry", False)}
    assert {action(status) for status in (304, 400, 405, 413, 415, 422, 501, 505)} == {("refuse", True)}
    assert {action(status) for status in (401, 402, 403)} == {("stop", True)}
    assert {action(status, "insufficient_quota") for status in (429, 500)} == {("stop", True)}
    request = httpx.Request("POST", "http://x")
    lost: list[Exception] = [
        TimeoutError(),
        openai.APITimeoutError(request),
        openai.APIConnectionError(request=request),
    ]
    failures = [classify(result) for result in lost]
    assert [(f.action, f.is_alive, f.by_time) for f in failures] == [
        ("retry", False, False), ("retry", False, False), ("retry", False, True)
    ]  # fmt: skip
    assert [f.is_unreachable for f in failures] == [False, False, True]


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
    judge_config: Any, fault_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers of a sampler count refusals themselves; a judge's callers get one clear error."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

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


@pytest.mark.parametrize("fault", [502, 429, {"cut": True}, {"body": "<html>"}, {"body": "null"}], ids=str)
@pytest.mark.parametrize("outage_s", [10.0, 60.0, 300.0])
def test_an_outage_shorter_than_the_patience_costs_no_answer(
    outage_s: float, fault: Any, caller: Callable[..., Caller], fault_server: Any
) -> None:
    """Attempts do not count while the endpoint is the cause; after the patience, the request fails."""
    clock = FakeClock()
    end = [clock.now()]

    async def go() -> None:
        async with fault_server(lambda n, body: fault if n and clock.now() < end[0] else "A") as server:
            one = caller(server.url, attempts=2, patience_s=400.0, clock=clock)
            assert await one.ask()
            end[0] = clock.now() + outage_s
            assert await one.ask() and clock.now() >= end[0]
            end[0] = float("inf")
            with pytest.raises((SamplingError, Unanswered)):
                await one.ask()
            assert clock.now() >= outage_s + 400.0
            await one.client.close()

    asyncio.run(go())


def test_what_may_be_the_requests_own_fault_is_counted(caller: Callable[..., Caller], fault_server: Any) -> None:
    """Outages between the attempts do not use them up."""

    async def go() -> None:
        async with fault_server(lambda n, body: 503 if n % 2 else "") as server:
            one = caller(server.url, attempts=3, patience_s=1e6, clock=FakeClock())
            with pytest.raises((SamplingError, Unanswered), match="no text"):
                await one.ask()
            assert one.meter.faults == {"no text": 3, "HTTP 503": 2} and len(server.bodies) == 5
            await one.client.close()

    asyncio.run(go())


@pytest.mark.parametrize("key", ["", " ", "\n", f"{KEY}\n", f"  {KEY} "])
def test_a_key_is_read_without_blanks_around_it(
    key: str, caller: Callable[..., Caller], fault_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)

    async def go() -> None:
        async with fault_server(lambda n, body: "A") as server:
            one = caller(server.url)
            assert await one.ask()
            assert server.authorizations == [f"Bearer {key.strip() or 'none'}"]
            await one.client.close()

    asyncio.run(go())


@pytest.mark.parametrize("key", ["sk-a\nb", "sk a", "schlüssel", "\u200bsk-a", "sk\x00a"])
def test_a_key_that_no_header_holds_is_named_by_its_variable(
    key: str, caller: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "OPENAI_API_KEY": key})
    with pytest.raises(UserError, match="the key in OPENAI_API_KEY has characters that no key has"):
        caller("http://127.0.0.1:9/v1")


def test_an_address_with_a_query(caller: Callable[..., Caller]) -> None:
    """It goes with every request, and no message shows it."""
    paths: list[str] = []

    class Handler(Replies):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.reply(200, {"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            paths.append(self.path)
            self.body()
            self.reply(400, {"error": {"message": "the key query-secret is wrong"}})

    async def go(url: str) -> None:
        one = caller(f"{url}/chat/completions?api-version=2&key=query-secret")
        with pytest.raises((SamplingError, Unanswered), match=r"the key \*\*\* is wrong"):
            await one.ask()
        await one.client.close()

    with serving(Handler) as url:
        asyncio.run(go(url))
    assert paths[-1] == "/v1/chat/completions?api-version=2&key=query-secret"
    assert paths[:-1] in ([], ["/v1/models?api-version=2&key=query-secret"])


def test_a_key_in_an_answer_is_replaced(
    caller: Callable[..., Caller], fault_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def go() -> None:
        async with fault_server(lambda n, body: f"your key is {KEY}.") as server:
            one = caller(server.url)
            assert KEY not in str(await one.ask())
            await one.client.close()

    asyncio.run(go())


def test_certificates_are_named(caller: Callable[..., Caller]) -> None:
    """TLS to a port that speaks plain HTTP, and a certificate that is not trusted."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async def go() -> None:
        listener = await asyncio.start_server(plain, "127.0.0.1", 0)
        one = caller(f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", clock=FakeClock())
        with pytest.raises((SamplingError, UserError), match=r"no secure connection to the .*SSL.*SSL_CERT_FILE"):
            await one.ask()
        assert one.meter.faults == {CERTIFICATE: 1}
        await one.client.close()
        listener.close()

    asyncio.run(go())
    error = openai.APIConnectionError(request=httpx.Request("POST", "https://x"))
    cause = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    error.__cause__ = cause
    cause.__cause__ = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    failure = classify(error)
    assert (failure.action, failure.kind) == ("stop", CERTIFICATE) and "self-signed" in failure.detail


def test_parameters_are_left_out(judge_config: Any, fault_server: Any) -> None:
    """Only what differs from the default is sent; a configuration names further ones."""

    async def go() -> None:
        async with fault_server(lambda n, body: "A") as server:
            plain = OpenAISampler([server.url], MODEL, forbidden=())
            await plain.sample(Request((), "Where?", temperature=0.0, max_new_tokens=5))
            await plain.sample(Request((), "Where?", top_p=0.5, seed=3, max_new_tokens=5))
            short = OpenAISampler(
                [server.url], MODEL, forbidden=(), leave_out=("max_completion_tokens", "seed", "top_p")
            )
            await short.sample(Request((), "Where?", top_p=0.5, seed=3, max_new_tokens=5))
            bare = judge_config(
                server.url, leave_out=("max_completion_tokens", "max_tokens", "temperature", "structured_outputs")
            )
            judge = OpenAITransport(bare, Meter())
            await judge.ask(CALL, ())
            bodies = [{k: v for k, v in body.items() if k not in ("model", "messages")} for body in server.bodies]
            assert bodies == [
                {"max_completion_tokens": 5, "temperature": 0.0},
                {"max_completion_tokens": 5, "temperature": 1.0, "top_p": 0.5, "seed": 3},
                {"max_tokens": 5, "temperature": 1.0},
                {},
            ]
            for one in (plain, short, judge):
                await one.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("url", "named", "variable"),
    [
        (None, None, "OPENAI_API_KEY"),
        ("https://api.openai.com/v1", None, "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None, None),
        ("https://api.openai.com.example.org/v1", None, None),
        ("https://example.org/api.openai.com/v1", None, None),
        ("http://127.0.0.1:8000/v1", None, None),
        ("http://host:8000/v1", "MY_KEY", "MY_KEY"),
        ("https://api.openai.com/v1", "MY_KEY", "MY_KEY"),
    ],
)
def test_whose_key_an_endpoint_gets(url: str | None, named: str | None, variable: str | None) -> None:
    assert variable_for(url, named) == variable


@pytest.mark.parametrize("who", ["sampler", "judge"])
def test_openais_key_is_for_openai_alone(
    who: str, judge_config: Any, fault_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another endpoint gets none, and where it requires one, the message names the setting, or the variable to set."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("NO_KEY", raising=False)

    def caller(url: str, variable: str | None) -> tuple[Callable[[], Any], Client]:
        if who == "sampler":
            sampler = OpenAISampler([url], MODEL, forbidden=(), key_variable=variable)
            return lambda: sampler.sample(Request((), "Where?")), sampler._client
        transport = OpenAITransport(judge_config(url, api_key_env=variable), Meter())
        return lambda: transport.ask(CALL, ()), transport._client

    async def go(variable: str | None, message: str) -> None:
        async with fault_server(lambda n, body: 401) as server:
            ask, client = caller(server.url, variable)
            with pytest.raises((SamplingError, UserError), match=message):
                await ask()
            assert set(server.authorizations) == {"Bearer none"}
            await client.close()

    asyncio.run(
        go(None, r"requires a key \(HTTP 401\), and none is meant for it .* in (engine\.|the judge's )api_key_env")
    )
    asyncio.run(go("NO_KEY", r"requires a key \(HTTP 401\), and the environment variable NO_KEY is not set"))


def test_openais_own_address_requires_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="no API key for the endpoint gpt: set the environment variable OPENAI_API_KEY"):
        OpenAISampler(["https://api.openai.com/v1"], "gpt", forbidden=())
