"""The HTTP client of sampling and judging: chat completions from OpenAI-compatible endpoints that serve one model.

A request goes to the least busy endpoint that is up. What another attempt may resolve is retried, elsewhere if possible, after
jittered exponential waits that respect Retry-After and hold no slot (`fgrpo.inference.failures` has the table). Retries last for
`patience_s` where the fault is an endpoint's, and for `attempts` where it may be the request's own. While all endpoints are
down, requests wait for up to the patience and then fail at once, until one endpoint answers a probe
(`fgrpo.inference.endpoint`). Works under any number of event loops, also in threads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from fgrpo.errors import UserError
from fgrpo.inference.budget import UsageMeter
from fgrpo.inference.clock import SYSTEM, Clock
from fgrpo.inference.connection import ServedModel, connect, key_of, stop_reason
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
from fgrpo.inference.model_list import ModelList
from fgrpo.inference.parameters import advice
from fgrpo.inference.redaction import redact
from fgrpo.inference.replies import WITHHELD, Reply, read_reply
from fgrpo.inference.size_limit import allow

Read = Callable[[bytes], Reply]  # raises BadReply
Body = Callable[[Endpoint], Awaitable[dict[str, Any]]]  # the JSON body of a request to this endpoint
_LOOK_S = 0.25  # seconds between two looks for an endpoint that is up again
_JITTER = random.Random()  # waits take nothing from the generator whose state a trainer saves


@dataclass
class _LoopState:
    """What belongs to one event loop."""

    endpoints: list[Endpoint]
    first_attempts: asyncio.Semaphore  # retries need not queue behind all requests that have not begun
    in_flight: asyncio.Semaphore


@dataclass
class _Attempts:
    """The attempts of one request: all, those that failed by its own fault, when the first one failed, and how the last one did."""

    count: int = 0
    own: int = 0
    failing_since: float | None = None
    last: Failure | None = None


class Client:
    """Sends requests to the endpoints of one model.

    Args:
        urls: API roots of the endpoints; None means OpenAI's own, which requires a key.
        meter: counts requests, tokens, retries and faults, and holds the spend cap.
        checks_model: whether to list an endpoint's models before its first request. Otherwise a 404 tells.
        stops: whether a failure that concerns every request (key, model, quota) also fails all later requests unsent.
        clock: measures the patience and waits between attempts.

    Raises:
        UserError: no API key for OpenAI's own endpoint, or a key that no header can hold (names the variable).
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
        clock: Clock = SYSTEM,
    ) -> None:
        self.urls, self.limits, self.meter, self.clock = tuple(urls), limits, meter, clock
        self._served_model, self._checks_model, self._stops = served, checks_model, stops
        self._models = ModelList(served, limits, clock)
        self._stopped: Failure | None = None
        self._keys = {url: key_of(served, url) for url in self.urls}
        self._paces = [
            (Pace(limits.requests_per_minute, clock), Pace(limits.tokens_per_minute, clock)) for _ in self.urls
        ]
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()

    async def complete(
        self,
        body: Body,
        reserved: tuple[int, int],
        n: int = 1,
        *,
        takes_blank: bool = False,
        takes_cut_off: bool = False,
        timeout_s: float | None = None,
    ) -> Reply:
        """The completion of one request.

        Args:
            body: called before each attempt; what it raises ends the request.
            reserved: (prompt, completion) tokens to set apart until the reply gives its usage (`fgrpo.inference.budget.estimate`).
            n: continuations that the body requests; the reply holds those that are usable, at least one.
            takes_blank, takes_cut_off: what counts as a text (`read_reply`).
            timeout_s: seconds per attempt of this request; None: those of the limits.

        Raises:
            RequestFailed: no completion, after all attempts.
            UserError: an endpoint does not serve the model (`checks_model`).
        """
        loop, attempts = self._loop(), _Attempts()
        read = partial(read_reply, n=n, takes_blank=takes_blank, takes_cut_off=takes_cut_off)
        timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
        last: Endpoint | None = None
        while True:
            attempts.count += 1
            async with loop.first_attempts if attempts.count == 1 else nullcontext():
                result, last = await self._attempt(loop, body, reserved, read, timeout_s, last)
            if not isinstance(result, Failure):
                return result
            attempts.own += not result.by_time
            if attempts.failing_since is None:
                attempts.failing_since = self.clock.now()
            if result.action != "retry" or self._is_over(loop, result, attempts):
                raise RequestFailed(result, attempts.count, self.clock.now() - attempts.failing_since)
            attempts.last = result
            wait = self._wait(attempts, result)
            self.meter.wait(wait)
            await self.clock.sleep(wait)

    async def check(self, body: Body, reserved: tuple[int, int]) -> None:
        """Find out whether requests can be answered, before any is needed: the key, the addresses, the model's name.

        The lists of models tell at no cost. Where none names the model, one request is sent.

        Args:
            body, reserved: of that request, see `complete`.

        Raises:
            UserError: no endpoint can be reached, or one refuses the key or the model (says which, and what to do).
        """
        endpoints = self._loop().endpoints
        found = [await self._models.reached(endpoint) for endpoint in endpoints]
        lost = [failure for failure in found if isinstance(failure, Failure)]
        if len(lost) == len(endpoints):
            raise UserError(
                f"the {self._served_model.role} {self._served_model.model} at {', '.join(e.name for e in endpoints)} cannot be "
                f"reached ({lost[0].detail}); start its server, or fix the address"
            )
        if any(not isinstance(names, Failure) and self._served_model.model in names for names in found):
            return
        try:
            await self.complete(body, reserved)
        except RequestFailed as error:
            failure = error.failure
            if failure.action == "stop":
                raise UserError(failure.detail) from None
            if failure.action == "refuse" or not failure.is_alive:
                raise UserError(
                    f"the {self._served_model.role} {self._served_model.model} at {', '.join(e.name for e in endpoints)} does not "
                    f"answer a first request ({failure.detail}); check its address and its name"
                ) from None

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
        connection = connect(url, self._keys[url], self.limits.timeout_s)
        return Endpoint(url, connection, self.limits, requests, tokens, self.clock)

    def _is_over(self, loop: _LoopState, failure: Failure, attempts: _Attempts) -> bool:
        """Whether a failed request is given up: after its attempts, or, where the fault is an endpoint's, after the patience."""
        if not failure.by_time:
            is_same = failure == attempts.last and failure.kind == WITHHELD
            return attempts.own >= self.limits.attempts or (is_same and self.limits.repeats_itself)
        if attempts.count < self.limits.attempts:
            return False
        if failure.kind == NO_CONNECTION and not _has_answered(loop):
            return True
        return self.clock.now() - (attempts.failing_since or 0.0) >= self._patience(loop)

    def _patience(self, loop: _LoopState) -> float:
        """Seconds of patience now."""
        limits = self.limits
        if limits.first_patience_s is None or _has_answered(loop):
            return limits.patience_s
        return min(limits.patience_s, limits.first_patience_s)

    def _wait(self, attempts: _Attempts, failure: Failure) -> float:
        """Seconds before the next attempt. An endpoint that is well is not waited for."""
        limits = self.limits
        doublings = min(attempts.count - 1, 60) if failure.by_time or not failure.is_alive else 0
        longest = min(limits.longest_backoff_s, limits.first_wait_s * 2**doublings)
        return min(limits.longest_wait_s, max(_JITTER.uniform(0, longest), failure.after_s))

    async def _attempt(
        self,
        loop: _LoopState,
        body: Body,
        reserved: tuple[int, int],
        read: Read,
        timeout_s: float,
        last: Endpoint | None,
    ) -> tuple[Reply | Failure, Endpoint | None]:
        """One request to one endpoint, which is returned too; `last` is that of the attempt before."""
        while True:
            endpoint = await self._choose(loop, last)
            if isinstance(endpoint, Failure):
                return endpoint, None
            endpoint.in_flight += 1
            try:
                async with endpoint.slots, loop.in_flight:
                    if endpoint.is_ready(self.clock.now()):  # still, after the wait for a slot
                        return await self._send(loop, endpoint, body, reserved, read, timeout_s), endpoint
            finally:
                endpoint.in_flight -= 1

    async def _choose(self, loop: _LoopState, last: Endpoint | None) -> Endpoint | Failure:
        """The endpoint for the next attempt; waits while all are down, for up to the patience.

        Another one than `last` if possible, then one to probe, so that a recovery is noticed, then the least busy one.
        """
        while True:
            now = self.clock.now()
            ready = [endpoint for endpoint in loop.endpoints if endpoint.is_ready(now)]
            if ready:
                return min(ready, key=lambda e: (e is last, e.down_since is None, e.in_flight))
            down_s = [
                now - (now if endpoint.down_since is None else endpoint.down_since) for endpoint in loop.endpoints
            ]
            if min(down_s) >= self._patience(loop):
                errors = "; ".join(f"{endpoint.name}: {endpoint.last_error}" for endpoint in loop.endpoints)
                detail = f"no answer for {max(down_s):.0f} s ({errors}); is a server running there?"
                return Failure("refuse", ENDPOINTS_DOWN, detail)
            await self.clock.sleep(min(_LOOK_S, *(endpoint.wakes_in(now) for endpoint in loop.endpoints)) + 0.001)

    async def _send(
        self, loop: _LoopState, endpoint: Endpoint, body: Body, reserved: tuple[int, int], read: Read, timeout_s: float
    ) -> Reply | Failure:
        if self._stopped is not None:
            return self._stopped
        if (full := self.meter.reserve(*reserved)) is not None:
            return Failure("refuse", SPEND_CAP, full)
        used: tuple[int, int] | None = None
        arguments: dict[str, Any] = {}
        is_probe = endpoint.begin()
        try:
            if (turn_s := max(endpoint.requests.take(), endpoint.tokens.take(sum(reserved)))) > 0:
                await self.clock.sleep(turn_s)
            if self._checks_model:
                await self._models.check(endpoint)
            arguments = await body(endpoint)
            allow(reserved[1])
            async with asyncio.timeout(timeout_s):  # httpx's own limit is per chunk
                # `create` comes down to this `post`, after a walk over every key of the body
                content = await endpoint.connection.post(
                    "/chat/completions", cast_to=bytes, body=arguments, options={"timeout": timeout_s}
                )
            reply = read(content)
            for unusable in reply.unusable:
                self.meter.fault(unusable.kind)
            endpoint.answered()
            used = reply.usage or reserved  # without usage the reservation counts, or a cap would never come
            return reply
        except ERRORS as error:
            failure = classify(error)
        finally:
            endpoint.ended(is_probe)
            endpoint.tokens.give_back(sum(reserved) - sum(used or (0, 0)))
            self.meter.settle(reserved, used)
        return await self._note(loop, endpoint, failure, arguments, is_probe)

    async def _note(
        self, loop: _LoopState, endpoint: Endpoint, failure: Failure, sent: dict[str, Any], was_probe: bool
    ) -> Failure:
        """Count a fault and what it says about its endpoint; returns it without keys, and with advice."""
        failure = replace(failure, detail=redact(failure.detail))
        self.meter.fault(failure.kind)
        if failure.status == 404 and failure.action == "retry":
            failure = await self._models.not_found(endpoint, failure)
        if failure.is_alive:
            endpoint.answered()
        else:
            others_are_up = any(other.down_since is None for other in loop.endpoints if other is not endpoint)
            endpoint.failed(f"{failure.kind}, {failure.detail[:200]}", was_probe, others_are_up)
        if failure.action == "refuse":
            hint = advice(failure.detail, sent, self._served_model.leave_out_setting)
            return replace(failure, detail=failure.detail + hint)
        if failure.action == "stop":
            failure = replace(failure, detail=stop_reason(self._served_model, endpoint.name, endpoint.url, failure))
            if self._stops:
                self._stopped = failure
        return failure


def _has_answered(loop: _LoopState) -> bool:
    return any(endpoint.has_answered for endpoint in loop.endpoints)
