"""What an endpoint can answer, to a sampler and to a judge alike: retried, refused, ends the run or read; never a traceback.

docs/endpoints.md has the table; `tests.odd_server` does all of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.extraction import EXTRACTION_TASK, ExtractionItem
from fgrpo.errors import UserError
from fgrpo.inference.base import Request, SamplingError
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.schema import Judge
from judges.base import Meter
from judges.client import OpenAITransport, Unanswered
from judges.requests import Unusable
from tests.clock import FakeClock
from tests.odd_server import BEHAVIOURS, KEY, MODEL, TEXT, OddServer, running

CALL = EXTRACTION_TASK.call(ExtractionItem("x", ("left",), "the former"))
FAILURES = (SamplingError, Unanswered, UserError, Unusable)
ATTEMPTS, PATIENCE_S = 3, 75.0
REPEATED = {"refusal", "finish-filter"}


@pytest.fixture(scope="module")
def server() -> Iterator[OddServer]:
    with running() as odd:
        yield odd


def ask(who: str, url: str, **more: Any) -> tuple[Any, int, FakeClock]:
    """(answer or error, attempts, clock) of one request by a sampler or a judge."""
    clock = FakeClock()
    timeout_s = 0.2 if "/slow/" in url else 10.0

    async def go() -> tuple[Any, int]:
        if who == "sampler":
            sampler = OpenAISampler(
                [url],
                MODEL,
                forbidden=(),
                attempts=ATTEMPTS,
                patience_s=PATIENCE_S,
                timeout_s=timeout_s,
                clock=clock,
                key_variable="OPENAI_API_KEY",
                **more,
            )
            work, close, meter = sampler.sample(Request((), "Where?", max_new_tokens=16)), sampler.close, sampler.meter
        else:
            config = Judge(
                backend="openai", model=MODEL, endpoints=(url,), max_completion_tokens=16, concurrency=4,
                attempts=ATTEMPTS, patience_s=PATIENCE_S, timeout_s=timeout_s, cache=None, api_key_env="OPENAI_API_KEY", **more,
            )  # fmt: skip
            meter = Meter()
            transport = OpenAITransport(config, meter, clock)
            work, close = transport.ask(CALL, ()), transport.close
        try:
            found = await work
            result: Any = found if isinstance(found, str) else found[0].text
        except FAILURES as error:
            result = error
        finally:
            await close()
        return result, meter.retries + 1

    return (*asyncio.run(go()), clock)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("who", ["sampler", "judge"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_every_behaviour(name: str, who: str, server: OddServer) -> None:
    behaviour, right = BEHAVIOURS[name], TEXT
    result, attempts, clock = ask(who, server.url(name, who))
    if behaviour.outcome == "read":
        assert result == right and attempts <= 1 + ("models" in name) * 60
    elif who == "judge" and name in REPEATED:  # at temperature 0 the same came twice
        assert isinstance(result, Unanswered) and attempts == 2
        sampling, attempts, _ = ask(who, server.url(name, f"{who}-sampling"), reasoning_effort="low")
        assert sampling == right and attempts == 3
    elif behaviour.outcome == "retried":  # the fault passes after two requests
        assert result == right and (attempts == 3 or name == "404-and-no-list")  # whose list of models is read first
        assert name != "retry-after" or clock.slept >= 40.0
        server.for_good.add(f"{who}-for-good")
        result, attempts, clock = ask(who, server.url(name, f"{who}-for-good"))
        assert isinstance(result, (SamplingError, Unanswered)) and attempts >= ATTEMPTS
        assert clock.slept < PATIENCE_S + 120
    else:
        tells_all = behaviour.outcome == "stops" and (who == "judge" or name == "other-model")
        expected = UserError if tells_all else (SamplingError, Unanswered)
        assert isinstance(result, expected) and attempts == 1
    if behaviour.outcome != "read":
        words = str(result)
        assert behaviour.says in words and KEY not in words
        assert len(words) < 2000 and "\n" not in words.strip()


@pytest.mark.parametrize("who", ["sampler", "judge"])
def test_waits_leave_the_state_of_random_as_it_was(who: str, server: OddServer) -> None:
    """A trainer saves that state: after an outage its checkpoint equals an undisturbed one's."""
    before = random.getstate()
    assert ask(who, server.url("status-502", f"{who}-random"))[0] == TEXT
    assert random.getstate() == before


def test_there_are_enough_of_them_and_the_table_has_all() -> None:
    assert len(BEHAVIOURS) >= 100
    table = (Path(__file__).resolve().parents[1] / "docs" / "endpoints.md").read_text(encoding="utf-8")
    assert [name for name in BEHAVIOURS if f"`{name}`" not in table] == []
