"""Asks an OpenAI-compatible endpoint, and never lies about it: a verdict, or a failed verdict with its reason.

Retried, with jittered exponential waits that respect Retry-After: time-outs, cut connections, 408, 409, 429, 5xx and replies
that are no HTTP JSON. Not retried: what stays as it is (400, 413, 422: that item fails). What concerns every item (401, 403,
a model that is not served, an exhausted quota) is a UserError. Equal calls in flight share one request; usable replies are
cached on disk. Works under any number of event loops, one after the other or in several threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
)

from fgrpo import addresses, endpoints, pictures, schema
from fgrpo.errors import UserError
from fgrpo.jsonl import dumps
from fgrpo.types import Verdict
from judges.base import Meter, failed_verdict
from judges.cache import Cache
from judges.calls import Call, Unusable

_LONGEST_WAIT_S = 30.0
_FAILURES_TO_REST = 5  # transport failures in a row, after which an endpoint is passed over for a while
_REST_S = 15.0


@dataclass
class _Endpoint:
    url: str | None
    client: openai.AsyncOpenAI
    free: asyncio.Semaphore
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0


@dataclass
class _LoopState:
    """What belongs to one event loop: connections, semaphores, calls under way."""

    endpoints: list[_Endpoint]
    under_way: dict[str, asyncio.Task[tuple[Verdict, ...]]] = field(default_factory=dict)


class Service:
    """Asks the model that `config` names.

    Raises:
        UserError: no API key for OpenAI's own endpoint (names the variable), no server of its model behind the address files
            that `endpoints` names, or the cache file is unusable.
    """

    def __init__(self, config: schema.Judge, meter: Meter) -> None:
        found = addresses.resolve(config.endpoints, config.model, f"the endpoints of the judge {config.model}")
        self._config, self.meter = config.model_copy(update={"endpoints": found}), meter
        key = os.environ.get(config.api_key_env, "").strip()
        if not key and not config.endpoints:
            raise UserError(
                f"no API key for the judge {config.model}: set the environment variable {config.api_key_env}"
            )
        self._key = key or "none"
        self._cache = Cache(config.cache) if config.cache else None
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()
        self._fatal: str | None = None

    async def ask_all(self, calls: Sequence[Call]) -> list[tuple[Verdict, ...]]:
        """The verdicts of each call, in order; see the module for what is raised."""
        results = await asyncio.gather(*(self.ask(call) for call in calls), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def ask(self, call: Call) -> tuple[Verdict, ...]:
        """The verdicts of one call: from the cache, from an equal call under way, or from an endpoint."""
        self.meter.calls += 1
        if self._fatal is not None:
            raise UserError(self._fatal)
        try:
            seen = await asyncio.to_thread(_read_pictures, call.images) if call.images else []
        except UserError as error:
            return self._failure(call, "a picture cannot be read", str(error))
        key = self._key_of(call, [digest for _, digest in seen])
        if self._cache is not None and (kept := self._cache.get(key)) is not None:
            self.meter.cached += 1
            return self._verdicts(call, kept)
        under_way = self._state().under_way
        task = under_way.get(key)
        if task is None:
            task = under_way[key] = asyncio.create_task(self._ask_endpoint(call, [url for url, _ in seen], key))
            task.add_done_callback(lambda _: under_way.pop(key, None))
        else:
            self.meter.shared += 1
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close this loop's connections and the cache."""
        state = self._states.pop(asyncio.get_running_loop(), None)
        for endpoint in state.endpoints if state else ():
            await endpoint.client.close()
        if self._cache is not None:
            self._cache.close()

    def _state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        if loop not in self._states:
            c = self._config
            self._states[loop] = _LoopState(
                [
                    _Endpoint(
                        url,
                        openai.AsyncOpenAI(api_key=self._key, base_url=url, timeout=c.timeout_s, max_retries=0),
                        asyncio.Semaphore(c.concurrency),
                    )
                    for url in (c.endpoints or (None,))
                ]
            )
        return self._states[loop]

    def _key_of(self, call: Call, image_digests: Sequence[str]) -> str:
        c = self._config
        parts = [
            c.model,
            c.reasoning_effort,
            c.max_completion_tokens,
            call.text,
            call.schema,
            call.choices,
            image_digests,
        ]
        return hashlib.sha256(dumps(parts).encode("utf-8", "backslashreplace")).hexdigest()

    async def _ask_endpoint(self, call: Call, urls: Sequence[str], key: str) -> tuple[Verdict, ...]:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._config.attempts),
            wait=self._wait,
            retry=retry_if_exception(endpoints.may_pass),
            reraise=True,
        )
        try:
            reply: str = await retrying(self._request, call, urls)
            verdicts = self._verdicts(call, reply)
        except Unusable as error:
            return self._failure(call, "unusable reply", str(error))
        except endpoints.ERRORS as error:
            await self._raise_if_fatal(error)
            return self._failure(call, _kind(error), self._clean(str(error)))
        if self._cache is not None and not verdicts[0].failed:
            self._cache.put(key, call.role, self._config.model, reply)
        return verdicts

    async def _request(self, call: Call, urls: Sequence[str]) -> str:
        """One attempt at one endpoint; raises what went wrong."""
        endpoint = self._pick()
        endpoint.in_flight += 1
        try:
            async with endpoint.free:
                self.meter.requests += 1
                async with asyncio.timeout(self._config.timeout_s):  # httpx's own limit is for each chunk
                    completion = await endpoint.client.chat.completions.create(**self._arguments(call, urls))
        except Exception as error:
            if endpoints.may_pass(error):
                self._note_failure(endpoint, error)
            raise
        finally:
            endpoint.in_flight -= 1
        endpoint.failures = 0
        return self._text_of(completion)

    def _pick(self) -> _Endpoint:
        """The endpoint with the fewest calls in flight among those that are not resting; all resting: the next to wake."""
        now = time.monotonic()
        return min(self._state().endpoints, key=lambda e: (max(0.0, e.rests_until - now), e.in_flight))

    def _note_failure(self, endpoint: _Endpoint, error: Exception) -> None:
        if isinstance(error, openai.RateLimitError):
            return  # busy, not ill
        endpoint.failures += 1
        if endpoint.failures >= _FAILURES_TO_REST:
            endpoint.rests_until = time.monotonic() + _REST_S
            endpoint.failures = 0

    def _arguments(self, call: Call, urls: Sequence[str]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": call.text})
        c = self._config
        out: dict[str, Any] = {
            "model": c.model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": c.max_completion_tokens,
        }
        if c.reasoning_effort is not None:
            out["reasoning_effort"] = c.reasoning_effort  # such models take no temperature
        else:
            out["temperature"] = 0.0
        if call.schema is not None:
            form = {"name": call.role, "strict": True, "schema": call.schema}
            out["response_format"] = {"type": "json_schema", "json_schema": form}
        elif call.choices and c.endpoints:
            out["extra_body"] = {"structured_outputs": {"choice": list(call.choices)}}  # vLLM's structured choice
        return out

    def _text_of(self, completion: Any) -> str:
        """The text of a completion. Raises Unusable if there is none, or if it was cut off."""
        usage = getattr(completion, "usage", None)
        if usage is not None:
            self.meter.prompt_tokens += getattr(usage, "prompt_tokens", 0) or 0
            self.meter.completion_tokens += getattr(usage, "completion_tokens", 0) or 0
        choices = getattr(completion, "choices", None)
        if not choices:
            raise Unusable("no completion in it")
        choice = choices[0]
        text = getattr(getattr(choice, "message", None), "content", None)
        if getattr(choice, "finish_reason", None) == "length":
            raise Unusable(f"cut off at {self._config.max_completion_tokens} tokens")
        if not isinstance(text, str) or not text:
            raise Unusable("empty")
        return text

    def _verdicts(self, call: Call, reply: str) -> tuple[Verdict, ...]:
        try:
            labels = call.read(reply)
        except Unusable as error:
            return self._failure(call, "unusable reply", str(error))
        return tuple(Verdict(label, why, False, self._config.model, call.prompt_hash) for label, why in labels)

    def _failure(self, call: Call, kind: str, detail: str) -> tuple[Verdict, ...]:
        self.meter.fail(kind)
        return (failed_verdict(f"{kind}: {detail[:300]}", self._config.model, call.prompt_hash),) * call.size

    def _wait(self, state: RetryCallState) -> float:
        self.meter.retries += 1
        return endpoints.waits(self._config.backoff_s, _LONGEST_WAIT_S)(state)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key != "none" else text

    async def _raise_if_fatal(self, error: Exception) -> None:
        """UserError for what no item can get round; remembered, so that later calls do not try."""
        c = self._config
        where = ", ".join(c.endpoints) or "OpenAI's endpoint"
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            self._fatal = (
                f"the judge at {where} refuses the key in {c.api_key_env} (HTTP {error.status_code}); set a valid one"
            )
        elif isinstance(error, openai.NotFoundError):
            served = await self._served()
            self._fatal = f"the judge at {where} does not serve {c.model!r}; it serves: {served}"
        elif getattr(error, "code", None) == endpoints.QUOTA:
            self._fatal = f"the quota of the key in {c.api_key_env} at {where} is used up; raise it and run again"
        if self._fatal is not None:
            raise UserError(self._fatal) from None

    async def _served(self) -> str:
        try:
            models = await self._state().endpoints[0].client.models.list()
            return ", ".join(sorted(m.id for m in models.data)[:20]) or "nothing"
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return "unknown (its list of models cannot be read either)"


def _read_pictures(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(data URL, its sha256) of each picture."""
    urls = [pictures.data_url(path) for path in paths]
    return [(url, hashlib.sha256(url.encode()).hexdigest()) for url in urls]


def _kind(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    return "time-out" if isinstance(error, (TimeoutError, openai.APITimeoutError)) else "no connection or no reply"
