"""The HTTP client of sampling and judging: chat completions from OpenAI-compatible endpoints that serve one model.

A request goes to the least busy endpoint that is up. What another attempt may resolve is retried, elsewhere if possible, after
jittered exponential waits that respect Retry-After and hold no slot (`fgrpo.inference.failures` has the table). While all
endpoints are down, requests wait for up to `patience_s` and then fail at once, until one endpoint answers a probe
(`fgrpo.inference.endpoint`). Works under any number of event loops, also in threads.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import openai
from openai.types.chat import ChatCompletion

from fgrpo.errors import UserError
from fgrpo.inference.budget import UsageMeter
from fgrpo.inference.endpoint import Endpoint, Limits, Pace
from fgrpo.inference.failures import (
    ENDPOINTS_DOWN,
    ERRORS,
    NO_CONNECTION,
    SPEND_CAP,
    Failure,
    RequestFailed,
    classify,
)

Body = Callable[[Endpoint], Awaitable[dict[str, Any]]]  # the JSON body of a request to this endpoint
_CHARACTERS_PER_TOKEN, _TOKENS_PER_IMAGE = 3, 1200  # of what is reserved before a reply gives its usage
_LOOK_S = 0.25  # seconds between two looks for an endpoint that is up again


@dataclass(frozen=True)
class ServedModel:
    """The model that a client calls, as its messages name it.

    Attributes:
        role: "judge" in "the judge at http://...".
        model: the served model's name; `model_setting` is the setting that holds it.
        key_variable: environment variable of the API key.
    """

    role: str
    model: str
    model_setting: str
    key_variable: str = "OPENAI_API_KEY"


@dataclass
class _LoopState:
    """What belongs to one event loop."""

    endpoints: list[Endpoint]
    first_attempts: asyncio.Semaphore  # retries need not queue behind all requests that have not begun
    in_flight: asyncio.Semaphore


class Client:
    """Sends requests to the endpoints of one model.

    Args:
        urls: API roots of the endpoints; None means OpenAI's own, which requires a key.
        meter: counts requests, tokens, retries and faults, and holds the spend cap.
        checks_model: whether to list an endpoint's models before its first request. Otherwise a 404 tells.
        stops: whether a failure that concerns every request (key, model, quota) also fails all later requests unsent.

    Raises:
        UserError: no API key for OpenAI's own endpoint (names the variable).
    """

    def __init__(
        self,
        urls: Sequence[str | None],
        served: ServedModel,
        limits: Limits,
        meter: UsageMeter,
        *,
        checks_model: bool = False,
        stops: bool = False,
    ) -> None:
        self.urls, self.limits, self.meter = tuple(urls), limits, meter
        self._served_model, self._checks_model, self._stops = served, checks_model, stops
        self._stopped: Failure | None = None
        self._key = os.environ.get(served.key_variable, "").strip()
        if not self._key and None in self.urls:
            raise UserError(
                f"no API key for the {served.role} {served.model}: set the environment variable {served.key_variable}"
            )
        self._paces = [(Pace(limits.requests_per_minute), Pace(limits.tokens_per_minute)) for _ in self.urls]
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()

    async def complete(self, body: Body, reserved: tuple[int, int]) -> ChatCompletion:
        """The completion of one request.

        Args:
            body: called before each attempt; what it raises ends the request.
            reserved: (prompt, completion) tokens to set apart until the reply gives its usage (`estimate`).

        Raises:
            RequestFailed: no completion, after all attempts.
            UserError: an endpoint does not serve the model (`checks_model`).
        """
        loop, started, attempt = self._loop(), time.monotonic(), 0
        last: Endpoint | None = None
        while True:
            attempt += 1
            async with loop.first_attempts if attempt == 1 else nullcontext():
                result, last = await self._attempt(loop, body, reserved, last)
            if not isinstance(result, Failure):
                return result
            if result.action != "retry" or self._is_over(loop, result, attempt, started):
                raise RequestFailed(result, attempt)
            wait = self._wait(attempt, result.after_s)
            self.meter.wait(wait)
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        for endpoint in loop.endpoints if loop is not None else ():
            await endpoint.connection.close()

    def _loop(self) -> _LoopState:
        running = asyncio.get_running_loop()
        if running not in self._loops:
            endpoints = [self._endpoint(url, *paces) for url, paces in zip(self.urls, self._paces, strict=True)]
            self._loops[running] = _LoopState(
                endpoints, asyncio.Semaphore(self.limits.concurrency), asyncio.Semaphore(self.limits.concurrency)
            )
        return self._loops[running]

    def _endpoint(self, url: str | None, requests: Pace, tokens: Pace) -> Endpoint:
        # with a transport of its own: the library's closes itself in whatever event loop runs when it is collected
        connection = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=url,
            timeout=self.limits.timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=self.limits.timeout_s),
        )
        return Endpoint(url, connection, self.limits, requests, tokens)

    def _is_over(self, loop: _LoopState, failure: Failure, attempt: int, started: float) -> bool:
        """Whether a failed request is given up: after its attempts, and its patience with endpoints that were up before."""
        if attempt < self.limits.attempts:
            return False
        was_up = failure.kind == NO_CONNECTION and any(endpoint.has_answered for endpoint in loop.endpoints)
        return not was_up or time.monotonic() - started >= self.limits.patience_s

    def _wait(self, attempt: int, after_s: float) -> float:
        """Seconds before the next attempt."""
        limits = self.limits
        longest = min(limits.longest_backoff_s, limits.first_wait_s * 2 ** min(attempt - 1, 60))
        return min(limits.longest_wait_s, max(random.uniform(0, longest), after_s))

    async def _attempt(
        self, loop: _LoopState, body: Body, reserved: tuple[int, int], last: Endpoint | None
    ) -> tuple[ChatCompletion | Failure, Endpoint | None]:
        """One request to one endpoint, which is returned too; `last` is that of the attempt before."""
        while True:
            endpoint = await self._choose(loop, last)
            if isinstance(endpoint, Failure):
                return endpoint, None
            endpoint.in_flight += 1
            try:
                async with endpoint.slots, loop.in_flight:
                    if endpoint.is_ready(time.monotonic()):  # still, after the wait for a slot
                        return await self._send(loop, endpoint, body, reserved), endpoint
            finally:
                endpoint.in_flight -= 1

    async def _choose(self, loop: _LoopState, last: Endpoint | None) -> Endpoint | Failure:
        """The endpoint for the next attempt; waits while all are down, for up to the patience.

        Another one than `last` if possible, then one to probe, so that a recovery is noticed, then the least busy one.
        """
        while True:
            now = time.monotonic()
            ready = [endpoint for endpoint in loop.endpoints if endpoint.is_ready(now)]
            if ready:
                return min(ready, key=lambda e: (e is last, e.down_since is None, e.in_flight))
            down_s = [now - (endpoint.down_since or now) for endpoint in loop.endpoints]
            patience_s = self.limits.patience_s
            if self.limits.first_patience_s is not None and not any(e.has_answered for e in loop.endpoints):
                patience_s = min(patience_s, self.limits.first_patience_s)
            if min(down_s) >= patience_s:
                errors = "; ".join(f"{endpoint.name}: {endpoint.last_error}" for endpoint in loop.endpoints)
                detail = f"no answer for {max(down_s):.0f} s ({errors}); is a server running there?"
                return Failure("refuse", ENDPOINTS_DOWN, detail)
            await asyncio.sleep(min(_LOOK_S, *(endpoint.wakes_in(now) for endpoint in loop.endpoints)) + 0.001)

    async def _send(
        self, loop: _LoopState, endpoint: Endpoint, body: Body, reserved: tuple[int, int]
    ) -> ChatCompletion | Failure:
        if self._stopped is not None:
            return self._stopped
        if (full := self.meter.reserve(*reserved)) is not None:
            return Failure("refuse", SPEND_CAP, full)
        used: tuple[int, int] | None = None
        is_probe = endpoint.begin()
        try:
            if (turn_s := max(endpoint.requests.take(), endpoint.tokens.take(sum(reserved)))) > 0:
                await asyncio.sleep(turn_s)
            if self._checks_model:
                await self._check_model(endpoint)
            arguments = await body(endpoint)
            async with asyncio.timeout(self.limits.timeout_s):  # httpx's own limit is per chunk
                # `create` comes down to this `post`, after a walk over every key of the body
                reply = await endpoint.connection.post("/chat/completions", cast_to=ChatCompletion, body=arguments)
            if (failure := classify(reply)) is None:
                endpoint.answered()
                used = _usage(reply) or reserved  # without usage the reservation counts, or a cap would never come
                return reply
        except ERRORS as error:
            failure = classify(error)
        finally:
            endpoint.ended(is_probe)
            endpoint.tokens.give_back(sum(reserved) - sum(used or (0, 0)))
            self.meter.settle(reserved, used)
        assert failure is not None
        return await self._note(loop, endpoint, failure, is_probe)

    async def _note(self, loop: _LoopState, endpoint: Endpoint, failure: Failure, was_probe: bool) -> Failure:
        """Count a fault and what it says about its endpoint; returns it without the key, and with advice if it stops all."""
        failure = replace(failure, detail=self._without_key(failure.detail))
        self.meter.fault(failure.kind)
        if failure.is_alive:
            endpoint.answered()
        else:
            others_are_up = any(other.down_since is None for other in loop.endpoints if other is not endpoint)
            endpoint.failed(f"{failure.kind}, {failure.detail[:200]}", was_probe, others_are_up)
        if failure.action == "stop":
            failure = replace(failure, detail=await self._stop_reason(endpoint, failure))
            if self._stops:
                self._stopped = failure
        return failure

    async def _stop_reason(self, endpoint: Endpoint, failure: Failure) -> str:
        served = self._served_model
        place = f"the {served.role} at {endpoint.name}"
        if failure.status in (401, 403):
            return f"{place} refuses the key in {served.key_variable} (HTTP {failure.status}); set a valid one"
        if failure.status == 404:
            return (
                f"{place} does not serve {served.model!r}; it serves: {await _names_of(endpoint)} (HTTP 404); set "
                f"{served.model_setting} to one of these, or serve it"
            )
        return f"the quota of the key in {served.key_variable} at {endpoint.name} is used up; raise it, then rerun to resume"

    async def _check_model(self, endpoint: Endpoint) -> None:
        """List the models of the endpoint, once. Raises UserError if the model is not among them."""
        if endpoint.served is not None:
            return
        async with endpoint.model_check:
            if endpoint.served is not None:
                return
            models = [model async for model in endpoint.connection.models.list()]
            names = {model.id for model in models}
            if names and self._served_model.model not in names:
                raise UserError(
                    f"{endpoint.name} does not serve {self._served_model.model!r} but {', '.join(sorted(names)[:8])}; "
                    f"set {self._served_model.model_setting} to one of these, or serve it"
                )
            endpoint.is_vllm = any(model.owned_by == "vllm" for model in models)
            endpoint.served, endpoint.has_answered = tuple(sorted(names)), True

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def estimate(text: str, images: int, completion: int) -> tuple[int, int]:
    """Tokens that a request will read, roughly, and write, at most: its reservation until the reply gives its usage."""
    return len(text) // _CHARACTERS_PER_TOKEN + images * _TOKENS_PER_IMAGE, completion


def _usage(completion: ChatCompletion) -> tuple[int, int] | None:
    usage = getattr(completion, "usage", None)
    if usage is None:
        return None
    return getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0


async def _names_of(endpoint: Endpoint) -> str:
    try:
        models = await endpoint.connection.models.list()
        return ", ".join(sorted(model.id for model in models.data)[:20]) or "nothing"
    except (openai.OpenAIError, ValueError, AttributeError, TypeError):
        return "unknown (its list of models cannot be read either)"
