"""The judges' client against a faulty server: no failure becomes a score, no item is lost, no call is retried forever."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference.vllm_server import free_port
from fgrpo.types import Verdict
from judges.backends.openai import BACKEND
from judges.base import JudgeSet, Meter
from judges.cached_client import CachedClient
from judges.client import CutOff, OpenAITransport, Unanswered
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_TASK, GroundingItem

YES = json.dumps({"why": "because", "label": "CONSISTENT"})
NO = json.dumps({"why": "because", "label": "INCONSISTENT"})


def item(n: int) -> ConsistencyItem:
    return ConsistencyItem(f"r{n}", f"Question {n}?", ("left", "right"), f"Reasoning {n}.", "left")


def number_of(body: dict[str, Any]) -> int:
    found = re.search(r"Reasoning (\d+)", body["messages"][0]["content"][-1]["text"])
    assert found
    return int(found.group(1))


def truth(n: int) -> str:
    return NO if n % 3 == 0 else YES


def ask(config: Any, body: Callable[[JudgeSet], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        judges = BACKEND(config, Path("unused"))
        try:
            return await body(judges)
        finally:
            await judges.close()

    return go()


SENTENCES = ("A car.", "A bus.", "A red tree.")


def grounding_item(n: int) -> GroundingItem:
    contexts = tuple(SENTENCES[:i] for i in range(len(SENTENCES)))
    return GroundingItem(f"r{n}", (), f"Reasoning {n}?", SENTENCES, contexts)


def labels_of(n: int) -> list[str]:
    return [("CORRECT", "INCORRECT", "SKIP")[(n + k) % 3] for k in range(len(SENTENCES))]


def whole_truth(n: int) -> str:
    """The reply to rollout n: consistency for even ones, grounding for odd ones."""
    if n % 2 == 0:
        return truth(n)
    return json.dumps({str(k + 1): {"why": "", "label": label} for k, label in enumerate(labels_of(n))})


def short_of(n: int) -> str:
    """A reply of the wrong length: a verdict is missing."""
    found = json.loads(whole_truth(n))
    found.popitem()
    return json.dumps(found)


class Unreliable:
    """Answers with the truth, but for three requests in ten; knows what it did to whom.

    The first requests of the first items take for ever, all at once, so that the test waits for a time-out only once.
    """

    NEVER, DRIPPED = range(10), range(10, 20)  # items

    def __init__(self) -> None:
        self.rng, self.sent = random.Random(0), Counter[str]()
        self.good, self.slow = Counter[int](), set[int]()
        self.given_up: dict[int, Any] = {}  # items with an unusable reply, which stays the same

    def __call__(self, _: int, body: dict[str, Any]) -> Any:
        n = number_of(body)
        if n in (*self.NEVER, *self.DRIPPED) and n not in self.slow:
            self.slow.add(n)
            self.sent["time-out"] += 1
            return {"text": whole_truth(n), "wait" if n in self.NEVER else "drip": 100.0 if n in self.NEVER else 1.0}
        if n in self.given_up:  # asked again with a larger limit
            self.sent["cut off"] += 1
            return self.given_up[n]
        if self.rng.random() > 0.3:
            self.good[n] += 1
            return whole_truth(n)
        passing: dict[str, Any] = {
            "HTTP 500": 500,
            "HTTP 503": 503,
            "HTTP 429": {"status": 429, "headers": {"Retry-After": "0.01"}, "body": "{}"},
            "no connection": {"cut": True},
            "no JSON": {"body": "<html>gateway</html>"},
            "no JSON ": {"body": '{"id": "x", "object": "chat.comp'},
        }
        lasting = [whole_truth(n)[:-9], "I think it is CONSISTENT.", short_of(n), {"text": "{", "finish": "length"}]
        kind = self.rng.choice([*passing, *range(len(lasting))])
        if isinstance(kind, int):
            self.given_up[n] = lasting[kind]
            return lasting[kind]
        self.sent[kind.strip()] += 1
        return passing[kind]


@pytest.mark.slow
def test_thirty_percent_faults(fault_server: Any, judge_config: Any) -> None:
    """2,000 rollouts: passing faults are retried until an answer comes, unusable replies fail, every verdict is its own
    item's truth, no item is answered twice, and every fault is counted under its name."""
    count, server_side = 2000, Unreliable()

    async def body(judges: JudgeSet) -> None:
        consistent, grounded = await asyncio.gather(
            judges.ask(CONSISTENCY_TASK, [item(n) for n in range(0, count, 2)]),
            judges.ask_several(GROUNDING_TASK, [grounding_item(n) for n in range(1, count, 2)]),
        )
        verdicts = dict(zip(range(0, count, 2), ([v] for v in consistent), strict=True))
        verdicts |= dict(zip(range(1, count, 2), grounded, strict=True))
        assert len(verdicts) == count
        for n, of_rollout in verdicts.items():
            wanted = labels_of(n) if n % 2 else [json.loads(truth(n))["label"]]
            given_up = n in server_side.given_up
            assert [v.label for v in of_rollout] == ([None] * len(wanted) if given_up else wanted), n
            assert all(v.failed == given_up and v.prompt_hash and v.judge == "served-model" for v in of_rollout)
        meter, sent = judges.meter, server_side.sent
        assert meter.failed == {"unusable reply": len(server_side.given_up)}
        assert len(server_side.given_up) > 100
        assert meter.requests == count + meter.retries
        slow = meter.faults["time-out"] - sent["time-out"]  # of honest replies, on a machine that is very busy
        assert {**meter.faults, "time-out": sent["time-out"]} == dict(sent) and slow >= 0
        assert sum(meter.faults.values()) == meter.retries  # no call ran out of attempts
        assert count <= sum(server_side.good.values()) + len(server_side.given_up) <= count + slow
        assert meter.waited_s <= 0.041 * meter.retries  # jittered back-off: 5 ms at first, 40 ms at most

    async def go() -> None:
        async with fault_server(server_side) as server:
            await ask(judge_config(server.url, attempts=14, concurrency=64, timeout_s=8.0), body)
            assert 32 < server.most_in_flight <= 64

    asyncio.run(go())


UNUSABLE = [
    "null",
    "[]",
    "CONSISTENT",
    '{"label": "CONSISTENT"}',
    '{"why": "x", "label": "CONSISTENT", "label": "INCONSISTENT"}',
    '{"why": "x", "label": "CONSISTENT", "label": "CONSISTENT"}',
    '{"why": "x", "label": "CONSISTENT or INCONSISTENT"}',
    f"The verdict: {YES}",
    f"```json\n{YES}\n```\n```json\n{NO}\n```",
    f"<think>{YES}",
    f"{YES}</think>",
    '{"why": 3, "label": "CONSISTENT"}',
    '{"why": "x", "label": "CONSISTENT"',
    YES + YES,
    "[" * 5000,
    400,
    413,
    422,
]


@pytest.mark.parametrize("reply", UNUSABLE, ids=range(len(UNUSABLE)))
def test_what_stays_as_it_is_fails_at_once(reply: Any, fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: reply) as server:

            async def body(judges: JudgeSet) -> None:
                (verdict,) = await judges.ask(CONSISTENCY_TASK, [item(0)])
                assert verdict.failed and verdict.label is None and verdict.reason
                assert len(server.bodies) == 1

            await ask(judge_config(server.url), body)

    asyncio.run(go())


def test_a_reply_that_is_cut_off_is_requested_again_with_a_larger_limit(fault_server: Any, judge_config: Any) -> None:
    """Bounded, at temperature 0 and for a model that samples alike; each item keeps its own verdict.

    A model that hides its reasoning sends no text at all.
    """
    needs = {0: 64, 1: 256, 2: 1024, 3: 1025}

    async def go(text: str = YES[:9], **more: Any) -> None:
        def behave(_: int, body: dict[str, Any]) -> Any:
            n = number_of(body)
            return truth(n) if body["max_completion_tokens"] >= needs[n] else {"text": text, "finish": "length"}

        async with fault_server(behave) as server:

            async def body(judges: JudgeSet) -> None:
                verdicts = await judges.ask(CONSISTENCY_TASK, [item(n) for n in needs])
                assert [v.label for v in verdicts] == ["INCONSISTENT", "CONSISTENT", "CONSISTENT", None]
                assert verdicts[3].failed and "truncated at 1024 tokens" in verdicts[3].reason
                asked = Counter((number_of(b), b["max_completion_tokens"]) for b in server.bodies)
                assert asked == Counter([(0, 64), *((n, 64 * 4**k) for n in (1, 2, 3) for k in range(min(n, 2) + 1))])
                assert judges.meter.faults == {"cut off": 5} and judges.meter.retries == 5

            await ask(judge_config(server.url, **more), body)

    asyncio.run(go())
    asyncio.run(go(reasoning_effort="medium"))
    asyncio.run(go("", reasoning_effort="medium"))


def test_a_longer_reply_has_more_time(fault_server: Any, judge_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen times the tokens do not arrive in the time of one reply."""
    allowed: list[float] = []
    timeout = asyncio.timeout

    def recorded(seconds: float) -> Any:
        allowed.append(seconds)
        return timeout(seconds)

    async def go() -> None:
        async with fault_server(lambda n, body: {"text": "", "finish": "length"}) as server:

            async def body(judges: JudgeSet) -> None:
                await judges.ask(CONSISTENCY_TASK, [item(0)])

            monkeypatch.setattr("fgrpo.inference.client.asyncio.timeout", recorded)
            await ask(judge_config(server.url, timeout_s=7.0), body)

    asyncio.run(go())
    assert [seconds for seconds in allowed if seconds != 7.0] == [28.0, 112.0]


def test_another_limit_keeps_the_good_verdicts(fault_server: Any, judge_config: Any, tmp_path: Path) -> None:
    """The cut-off call alone is sent again."""

    def behave(_: int, body: dict[str, Any]) -> Any:
        enough = number_of(body) != 1 or body["max_completion_tokens"] >= 4096
        return truth(number_of(body)) if enough else {"text": "{", "finish": "length"}

    async def go() -> None:
        async with fault_server(behave) as server:

            async def body(judges: JudgeSet) -> list[str | None]:
                return [v.label for v in await judges.ask(CONSISTENCY_TASK, [item(n) for n in range(3)])]

            cache = str(tmp_path / "replies.sqlite")
            first = await ask(judge_config(server.url, cache=cache), body)
            sent = len(server.bodies)
            second = await ask(judge_config(server.url, cache=cache, max_completion_tokens=4096), body)
            assert first == ["INCONSISTENT", None, "CONSISTENT"] and second == [
                "INCONSISTENT",
                "CONSISTENT",
                "CONSISTENT",
            ]
            assert [number_of(b) for b in server.bodies[sent:]] == [1]

    asyncio.run(go())


def test_a_server_that_refuses_the_larger_limit_is_named_with_the_cause(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        refuse = lambda n, body: {"text": "{", "finish": "length"} if body["max_completion_tokens"] == 64 else 400  # noqa: E731
        async with fault_server(refuse) as server:

            async def body(judges: JudgeSet) -> None:
                (verdict,) = await judges.ask(CONSISTENCY_TASK, [item(0)])
                assert verdict.failed and "status 400" in verdict.reason and "truncated at 64 tokens" in verdict.reason
                assert len(server.bodies) == 2

            await ask(judge_config(server.url), body)

    asyncio.run(go())


def test_the_training_judge_waits_out_a_restart_of_its_server() -> None:
    for role in ("training", "evaluation", "extraction"):
        assert getattr(load("paper-7b").judges, role).patience_s >= load("paper-7b").engine.patience_s == 900.0


PASSING = [
    500,
    502,
    503,
    408,
    409,
    429,
    {"cut": True},
    {"body": "garbage"},
    {"body": "<html>Bad gateway</html>", "headers": {"Content-Type": "text/html"}},
    {"body": "", "headers": {"Content-Type": "text/plain"}},
    404,
    425,
    "",
    {"body": json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []})},
    {"body": json.dumps({"error": "odd"})},
    {"text": YES, "wait": 1.0},
    {"text": YES, "drip": 0.05},
]


@pytest.mark.parametrize("fault", PASSING, ids=range(len(PASSING)))
def test_what_can_pass_is_tried_again(fault: Any, fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: fault if n == 0 else YES) as server:

            async def body(judges: JudgeSet) -> None:
                (verdict,) = await judges.ask(CONSISTENCY_TASK, [item(0)])
                assert verdict.label == "CONSISTENT"
                assert (len(server.bodies), judges.meter.retries) == (2, 1)

            await ask(judge_config(server.url, timeout_s=0.3), body)

    asyncio.run(go())


@pytest.mark.parametrize("fault", [500, {"cut": True}, {"text": YES, "wait": 1.0}])
def test_a_dead_server_fails_items_and_scores_none(fault: Any, fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: fault) as server:

            async def body(judges: JudgeSet) -> None:
                verdicts = await judges.ask(CONSISTENCY_TASK, [item(n) for n in range(4)])
                assert all(v.failed and v.label is None for v in verdicts)
                assert len(server.bodies) == 4 * 3
                assert sum(judges.meter.failed.values()) == 4

            await ask(judge_config(server.url, attempts=3, timeout_s=0.2), body)

    asyncio.run(go())


def test_retry_after_is_respected(fault_server: Any, judge_config: Any) -> None:
    slow = {"status": 429, "headers": {"Retry-After": "0.4"}, "body": "{}"}

    async def go() -> None:
        async with fault_server(lambda n, body: slow if n == 0 else YES) as server:
            begin = time.monotonic()
            await ask(judge_config(server.url), lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)]))
            assert time.monotonic() - begin >= 0.4

    asyncio.run(go())


def test_an_unreachable_endpoint_is_passed_over(fault_server: Any, judge_config: Any) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: truth(number_of(body))) as server:

            async def body(judges: JudgeSet) -> None:
                verdicts = await judges.ask(CONSISTENCY_TASK, [item(n) for n in range(60)])
                assert [v.label for v in verdicts] == [json.loads(truth(n))["label"] for n in range(60)]

            await ask(judge_config("http://127.0.0.1:9/v1", server.url, attempts=12), body)

    asyncio.run(go())


KEY = "sk-very-secret-123"
FATAL = [
    (401, "refuses the key in MY_KEY"),
    (403, "refuses the key in MY_KEY"),
    (402, "requires a payment (HTTP 402"),
    (
        {"status": 429, "body": json.dumps({"error": {"message": KEY, "code": "insufficient_quota"}})},
        "quota of the key in MY_KEY",
    ),
]


@pytest.mark.parametrize(("reply", "says"), FATAL)
def test_what_no_item_can_get_round_stops_with_one_clear_error(
    reply: Any,
    says: str,
    fault_server: Any,
    judge_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    async def go() -> None:
        async with fault_server(lambda n, body: reply) as server:

            async def body(judges: JudgeSet) -> None:
                with pytest.raises(UserError, match=re.escape(says)) as raised:
                    await judges.ask(CONSISTENCY_TASK, [item(n) for n in range(50)])
                assert KEY not in str(raised.value)
                asked = len(server.bodies)
                assert asked <= 16  # those in flight; the others fail at once
                with pytest.raises(UserError):
                    await judges.ask(CONSISTENCY_TASK, [item(99)])
                assert len(server.bodies) == asked  # no further request
                assert server.authorizations[0] == f"Bearer {KEY}"

            await ask(judge_config(server.url, api_key_env="MY_KEY"), body)

    asyncio.run(go())
    assert KEY not in caplog.text


def test_the_key_is_in_no_verdict(fault_server: Any, judge_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    async def go() -> None:
        bad = {"status": 400, "body": json.dumps({"error": {"message": f"bad header {KEY}"}})}
        async with fault_server(lambda n, body: bad) as server:
            (verdict,) = await ask(
                judge_config(server.url, api_key_env="MY_KEY"), lambda j: j.ask(CONSISTENCY_TASK, [item(0)])
            )
            assert "bad header" in verdict.reason and KEY not in verdict.reason

    asyncio.run(go())


def test_no_key_names_the_variable(judge_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY"):
        BACKEND(judge_config(api_key_env="MY_KEY"), Path("unused"))


def test_equal_calls_in_flight_share_one_request_and_the_cache_the_rest(
    fault_server: Any, judge_config: Any, tmp_path: Path
) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: {"text": truth(number_of(body)), "wait": 0.02}) as server:
            config = judge_config(server.url, cache=str(tmp_path / "c" / "cache.sqlite"))

            async def first(judges: JudgeSet) -> Any:
                verdicts = await judges.ask(CONSISTENCY_TASK, [item(n % 10) for n in range(40)])
                assert (len(server.bodies), judges.meter.shared) == (10, 30)
                return verdicts

            async def second(judges: JudgeSet) -> Any:
                verdicts = await judges.ask(CONSISTENCY_TASK, [item(n % 10) for n in range(40)])
                assert (judges.meter.requests, judges.meter.cached) == (0, 40)
                return verdicts

            assert await ask(config, first) == await ask(config, second)
            other = judge_config(server.url, cache=config.cache, model="another")
            await ask(other, lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)]))
            assert len(server.bodies) == 11  # another model has its own replies

    asyncio.run(go())


def test_failures_are_not_cached(fault_server: Any, judge_config: Any, tmp_path: Path) -> None:
    async def go() -> None:
        async with fault_server(lambda n, body: "garbage" if n == 0 else YES) as server:
            config = judge_config(server.url, cache=str(tmp_path / "cache.sqlite"))
            (bad,) = await ask(config, lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)]))
            (good,) = await ask(config, lambda judges: judges.ask(CONSISTENCY_TASK, [item(0)]))
            assert bad.failed and good.label == "CONSISTENT"

    asyncio.run(go())


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "This model's maximum context length is 16384 tokens. However, you requested 16384 output tokens",
            "unusable reply",
        ),
        (
            "'max_completion_tokens' is too large: 16384. This model supports at most 8192 completion tokens",
            "unusable reply",
        ),
        ("Error code: 400 - response_format is not supported", "HTTP 400"),
    ],
)
def test_a_larger_limit_that_the_context_has_no_room_for_leaves_the_reply_cut_off(
    judge_config: Any, words: str, kind: str
) -> None:
    class Narrow:
        asked: ClassVar[list[int]] = []

        async def ask(self, call: Any, urls: Any, widened: int = 0) -> str:
            self.asked.append(widened)
            if widened < 2:
                raise CutOff("truncated at 4096 tokens")
            raise Unanswered("HTTP 400", words)

    Narrow.asked.clear()
    meter = Meter()
    service = CachedClient(judge_config("http://127.0.0.1:9"), meter, Narrow())  # type: ignore[arg-type]
    (verdict,) = asyncio.run(service.ask(CONSISTENCY_TASK.call(item(0))))
    assert Narrow.asked == [0, 1, 2] and verdict.failed and meter.failed == {kind: 1}
    assert "truncated at 4096 tokens" in verdict.reason and words[:60] in verdict.reason


def test_one_client_under_several_event_loops(fault_server: Any, judge_config: Any) -> None:
    port = free_port()
    config, meter = judge_config(f"http://127.0.0.1:{port}"), Meter()  # "/v1" is added
    service = CachedClient(config, meter, OpenAITransport(config, meter))

    async def go() -> tuple[Verdict, ...]:
        async with fault_server(lambda n, body: YES, port):
            return await service.ask(CONSISTENCY_TASK.call(item(0)))

    for _ in range(3):
        (verdict,) = asyncio.run(go())
        assert verdict.label == "CONSISTENT"
