"""Brings a call to an OpenAI-compatible endpoint and its reply back, or says why there is none.

Retried, with jittered exponential waits that respect Retry-After and hold no slot: time-outs, cut connections, 408, 409, 429,
5xx and replies that are no HTTP JSON. Not retried: what stays as it is (400, 413, 422: that call fails). What concerns every
call (401, 403, a model that is not served, an exhausted quota) is a UserError. Calls wait while all endpoints are down, for at
most `patience_s`, and then fail at once until one answers a probe. Works under any number of event loops, also in threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import openai
from openai.types.chat import ChatCompletion
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.inference import addresses, endpoints
from judges.base import Meter
from judges.endpoint import Endpoint, Pace
from judges.requests import Call, Unusable

LONGEST_WAIT_S = 30.0  # that a Retry-After header may ask for
_LONGEST_BACKOFF = 8  # times `backoff_s`: endpoints that are down rest by themselves
CUT_OFF = "cut off at {} tokens; raise the judge's max_completion_tokens (for grounding, or set sentence_calls)"
_LETTERS_A_TOKEN, _TOKENS_A_PICTURE = 3, 1200  # for what is set aside before a reply says what was used


class Unanswered(Exception):
    """No reply could be had. `kind` groups such failures in counts."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Transport(Protocol):
    """Asks one model; `urls` are a call's pictures.

    `ask` returns the text of a whole reply. It raises `Unusable` (a reply without a whole text), `Unanswered` (no reply), or
    UserError for what holds for every call.
    """

    async def ask(self, call: Call, urls: Sequence[str]) -> str: ...

    async def close(self) -> None: ...


class OpenAITransport:
    """Asks the model and the endpoints that `config` names.

    Raises:
        UserError: no API key for OpenAI's own endpoint (names the variable), or no server of its model behind the address
            files that `endpoints` names.
    """

    def __init__(self, config: schema.Judge, meter: Meter) -> None:
        found = addresses.resolve(config.endpoints, config.model, f"the endpoints of the judge {config.model}")
        self._config, self._meter = config, meter
        self._hopeless: str | None = None  # what the first call found out and no other one can get round
        self._key = os.environ.get(config.api_key_env, "").strip()
        if not self._key and not found:
            raise UserError(
                f"no API key for the judge {config.model}: set the environment variable {config.api_key_env}"
            )
        self._urls: tuple[str | None, ...] = tuple(map(endpoints.normal_url, found)) or (None,)
        # OpenAI's own endpoint, whoever hosts it, refuses vLLM's structured choice
        self._takes_choices = bool(found) and not any("openai." in urlsplit(url).netloc for url in found)
        self._paces = [(Pace(config.requests_per_minute), Pace(config.tokens_per_minute)) for _ in self._urls]
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Endpoint]] = WeakKeyDictionary()
        self._firsts: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._waits = endpoints.waits(config.backoff_s, LONGEST_WAIT_S, _LONGEST_BACKOFF * config.backoff_s)

    async def ask(self, call: Call, urls: Sequence[str]) -> str:
        """See `Transport`."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._config.attempts),
            wait=self._wait,
            retry=retry_if_exception(endpoints.may_pass),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    # only first attempts pass the gate: later ones need not queue behind all that have not begun
                    is_first = attempt.retry_state.attempt_number == 1
                    async with self._first_attempts() if is_first else nullcontext():
                        return await self._attempt(call, urls)
        except endpoints.ERRORS as error:
            raise Unanswered(kind_of(error), self._clean(str(error))) from None
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        for endpoint in self._of_loop.pop(asyncio.get_running_loop(), []):
            await endpoint.client.close()

    def _first_attempts(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop not in self._firsts:
            self._firsts[loop] = asyncio.Semaphore(self._config.concurrency * len(self._urls))
        return self._firsts[loop]

    def _endpoints(self) -> list[Endpoint]:
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            self._of_loop[loop] = [
                self._endpoint(url, *pace) for url, pace in zip(self._urls, self._paces, strict=True)
            ]
        return self._of_loop[loop]

    def _endpoint(self, url: str | None, requests: Pace, tokens: Pace) -> Endpoint:
        c = self._config
        # with a transport of our own: the library's closes itself in whatever event loop runs when it is collected
        client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=url,
            timeout=c.timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=c.timeout_s),
        )
        return Endpoint(url, client, c.concurrency, asyncio.Semaphore(c.concurrency), requests, tokens, 2 * c.backoff_s)

    async def _attempt(self, call: Call, urls: Sequence[str]) -> str:
        """One request to one endpoint; raises what went wrong."""
        while True:
            endpoint = await self._choose()
            endpoint.in_flight += 1
            try:
                async with endpoint.free:
                    if endpoint.is_ready(time.monotonic()):  # still, after waiting for a slot
                        return await self._request(endpoint, call, urls)
            finally:
                endpoint.in_flight -= 1

    async def _choose(self) -> Endpoint:
        """The least busy endpoint that is up or may be probed; waits for one. Raises Unanswered past `patience_s`."""
        while True:
            now, known = time.monotonic(), self._endpoints()
            ready = [e for e in known if e.is_ready(now)]
            if ready:  # a probe first, so that what came back is found out
                return min(ready, key=lambda e: (e.down_since is None, e.in_flight))
            longest = max(now - (e.down_since or now) for e in known)
            if min(now - (e.down_since or now) for e in known) >= self._config.patience_s:
                said = "; ".join(f"{e.name}: {e.last_error}" for e in known)
                raise Unanswered(
                    "endpoints down", f"no answer for {longest:.0f} s ({said}); is a server running there?"
                )
            await asyncio.sleep(min(0.25, *(e.wakes_in(now) for e in known)) + 0.001)

    async def _request(self, endpoint: Endpoint, call: Call, urls: Sequence[str]) -> str:
        if self._hopeless is not None:
            raise UserError(self._hopeless)
        asked = estimate(call, urls, self._config.room(call.size))
        if (full := self._meter.reserve(*asked)) is not None:
            raise Unanswered("spend cap", full)
        used: tuple[int, int] | None = None
        is_probe = endpoint.begin()
        try:
            if (turn := max(endpoint.requests.take(), endpoint.tokens.take(sum(asked)))) > 0:
                await asyncio.sleep(turn)
            async with asyncio.timeout(self._config.timeout_s):  # httpx's own limit is for each chunk
                # `post` is what `create` comes to, without its walk over every key of the schema
                body = self._body(call, urls)
                completion = await endpoint.client.post("/chat/completions", cast_to=ChatCompletion, body=body)
            if not isinstance(completion, ChatCompletion):  # a page of a gateway, which the library gives as it is
                raise json.JSONDecodeError("the reply is no JSON", str(completion)[:100], 0)
            endpoint.answered()
            used = (
                _usage(completion) or asked
            )  # who does not say counts as what was set aside, or a cap would never come
            return _text_of(completion, asked[1])
        except endpoints.ERRORS as error:
            await self._note(endpoint, error, is_probe)
            raise
        finally:
            endpoint.ended(is_probe)
            endpoint.tokens.give_back(sum(asked) - sum(used or (0, 0)))
            self._meter.settle(asked, used)

    async def _note(self, endpoint: Endpoint, error: Exception, was_probe: bool) -> None:
        """Count a fault and what it says about its endpoint; UserError for what no call can get round."""
        self._meter.fault(kind_of(error))
        if not endpoints.may_pass(error) or (isinstance(error, openai.APIStatusError) and error.status_code < 500):
            endpoint.answered()
        else:
            others_are_up = any(e.down_since is None for e in self._endpoints() if e is not endpoint)
            endpoint.failed(f"{kind_of(error)}, {self._clean(str(error))[:200]}", was_probe, others_are_up)
        if (reason := await self._hopeless_reason(endpoint, error)) is not None:
            self._hopeless = reason
            raise UserError(reason) from None

    async def _hopeless_reason(self, endpoint: Endpoint, error: Exception) -> str | None:
        c = self._config
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return f"the judge at {endpoint.name} refuses the key in {c.api_key_env} (HTTP {error.status_code}); set a valid one"
        if isinstance(error, openai.NotFoundError):
            return (
                f"the judge at {endpoint.name} does not serve {c.model!r}; it serves: {await _served(endpoint)}; set the judge's "
                "model to one of these, or serve it"
            )
        if getattr(error, "code", None) == endpoints.QUOTA:
            return f"the quota of the key in {c.api_key_env} at {endpoint.name} is used up; raise it and run again"
        return None

    def _body(self, call: Call, urls: Sequence[str]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": call.text})
        c = self._config
        out: dict[str, Any] = {
            "model": c.model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": c.room(call.size),
        }
        if c.reasoning_effort is not None:
            out["reasoning_effort"] = c.reasoning_effort  # such models take no temperature
        else:
            out["temperature"] = 0.0
        if call.choices and self._takes_choices:
            out["structured_outputs"] = {"choice": list(call.choices)}  # vLLM's structured choice
        elif call.schema is not None:
            form = {"name": call.role, "strict": True, "schema": call.schema}
            out["response_format"] = {"type": "json_schema", "json_schema": form}
        return out

    def _wait(self, state: RetryCallState) -> float:
        wait = self._waits(state)
        self._meter.wait(wait)
        return wait

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def estimate(call: Call, urls: Sequence[str], most: int) -> tuple[int, int]:
    """Tokens that a call will read, roughly, and write, at most: what is set aside for it before its reply says."""
    return len(call.text) // _LETTERS_A_TOKEN + len(urls) * _TOKENS_A_PICTURE, most


def kind_of(error: Exception) -> str:
    """What went wrong, in a few words that counts can be grouped by."""
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return "time-out"
    return "no connection" if isinstance(error, openai.APIConnectionError) else "no JSON"


def _usage(completion: Any) -> tuple[int, int] | None:
    usage = getattr(completion, "usage", None)
    if usage is None:
        return None
    return getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0


def _text_of(completion: Any, most: int) -> str:
    """The text of a completion. Raises Unusable if there is none, or if it was cut off."""
    choices = getattr(completion, "choices", None)
    if not choices:
        raise Unusable("no completion in it")
    text = getattr(getattr(choices[0], "message", None), "content", None)
    if getattr(choices[0], "finish_reason", None) == "length":
        raise Unusable(CUT_OFF.format(most))
    if not isinstance(text, str) or not text:
        raise Unusable("empty")
    return text


async def _served(endpoint: Endpoint) -> str:
    try:
        models = await endpoint.client.models.list()
        return ", ".join(sorted(m.id for m in models.data)[:20]) or "nothing"
    except (openai.OpenAIError, ValueError, AttributeError, TypeError):
        return "unknown (its list of models cannot be read either)"
