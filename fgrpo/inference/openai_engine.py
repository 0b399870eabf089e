"""Sampling from OpenAI-compatible endpoints: vLLM servers, one or many, or a closed model behind its own.

Every request goes to the endpoint with the fewest under way. What may pass (no connection, time-out, 408, 409, 429, 5xx) is
tried again, elsewhere where there is an elsewhere; what will not (400, 401, 403, 404, 422) is a `SamplingError` at once.
Endpoints that have answered before and are gone (a server that is started again) are waited for; one that failed is asked
again now and then, so it is used again once it is back.

A vLLM server gets what keeps it equal to the transformers engine: the assistant's turn is continued from `prefix`, stop
strings stay in the text, forbidden tokens have a bias of -100, and the sampling defaults that the server would take from
the model's generation_config.json are overridden. Other servers know none of that: a prefix is refused there. The random
numbers of a seed are the server's own.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from fgrpo.errors import UserError
from fgrpo.images import data_url
from fgrpo.inference import addresses, endpoints
from fgrpo.inference.base import FORBIDDEN_BIAS, Completion, Request, SamplingError, Unreachable, check, describe
from fgrpo.inference.endpoints import normal_url
from fgrpo.policy import tokens

REJECTED = (400, 413, 415, 422, 500)  # what servers say to pictures that they cannot take
_PICTURE_WORDS = re.compile(r"image|multi-?modal|vision|content type", re.IGNORECASE)
NEUTRAL: dict[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}  # not the model's generation_config.json


@dataclass
class _Endpoint:
    url: str
    client: openai.AsyncOpenAI
    under_way: int = 0
    failures: int = 0  # in a row
    failed_at: float = 0.0  # the loop's time of the last failure, or of the last request that looked whether it is back
    is_vllm: bool | None = None


class OpenAISampler:
    """A `Sampler` over endpoints that serve one model.

    Args:
        endpoints: addresses such as "http://host:8000/v1" ("/v1" is added where there is no path), or address files
            (`fgrpo.inference.addresses`).
        model: the served model's name.
        tokenizer: folder or hub name of its tokenizer, from which the forbidden tokens are read; None forbids none.
        forbidden: ids to forbid instead of reading `tokenizer`.
        concurrency: requests under way at most, over all endpoints.
        patience_s: how long a request waits for endpoints that have answered before and no longer do (0: `attempts` only).
        rest_s: seconds after which an endpoint that failed is asked again although there is another.

    Raises:
        UserError: no endpoint, or something that is not an http address.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        *,
        tokenizer: str | None = None,
        forbidden: Sequence[int] | None = None,
        concurrency: int = 64,
        attempts: int = 6,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
        patience_s: float = 0.0,
        rest_s: float = 15.0,
    ) -> None:
        if not endpoints:
            raise UserError(
                'engine.kind is "openai" but engine.endpoints is empty; give one, such as ["http://localhost:8000/v1"]'
            )
        self.urls = [normal_url(e) for e in addresses.resolve(endpoints, model, "engine.endpoints")]
        self.model, self.tokenizer = model, tokenizer
        self._forbidden = None if forbidden is None else tuple(forbidden)
        self._concurrency, self._attempts, self._timeout_s = concurrency, attempts, timeout_s
        self._longest_wait_s, self._patience_s, self._rest_s = longest_wait_s, patience_s, rest_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._endpoints: list[_Endpoint] = []

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` continuations.

        Raises:
            SamplingError: the request cannot be served, or (`Unreachable`) no endpoint was there in all attempts.
        """
        check(request)
        self._bind()
        async with self._gate:
            try:
                content = await asyncio.to_thread(_content, request)
            except UserError as error:
                raise SamplingError(f"{describe(request)}: {error}") from error
            retrying = AsyncRetrying(
                retry=retry_if_exception(endpoints.may_pass),
                stop=self._is_over,
                wait=endpoints.waits(0.5, self._longest_wait_s),
                reraise=True,
            )
            try:
                async for attempt in retrying:
                    with attempt:
                        return await self._ask(request, content)
            except endpoints.ERRORS as error:
                kind = Unreachable if _is_unconnected(error) else SamplingError
                raise kind(
                    f"{describe(request)}: {_explain(error, request, self.urls, attempt.retry_state.attempt_number)}"
                ) from error
        raise AssertionError("unreachable")

    def _is_over(self, state: RetryCallState) -> bool:
        """Whether a failed request is given up: after its attempts, or its patience with endpoints that were there before."""
        error = state.outcome.exception() if state.outcome else None
        known = any(endpoint.is_vllm is not None for endpoint in self._endpoints)
        if known and _is_unconnected(error):
            return state.attempt_number >= self._attempts and (state.seconds_since_start or 0.0) >= self._patience_s
        return state.attempt_number >= self._attempts

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._loop is asyncio.get_running_loop():
            for endpoint in self._endpoints:
                await endpoint.client.close()
        self._loop, self._endpoints = None, []

    def _bind(self) -> None:
        """Connections and semaphore belong to one event loop; a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop, self._gate = loop, asyncio.Semaphore(self._concurrency)
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._endpoints = [_Endpoint(url, self._client(url, key)) for url in self.urls]
        self._probing = asyncio.Lock()

    def _client(self, url: str, key: str) -> openai.AsyncOpenAI:
        # with a transport of our own: the library's closes itself in whatever event loop runs when it is collected
        transport = openai.DefaultAsyncHttpxClient(timeout=self._timeout_s)
        return openai.AsyncOpenAI(
            base_url=url, api_key=key, max_retries=0, timeout=self._timeout_s, http_client=transport
        )

    def _choose(self) -> _Endpoint:
        """The endpoint with the fewest failures in a row and then the fewest under way, or one that has rested."""
        now = asyncio.get_running_loop().time()
        for endpoint in self._endpoints:
            if endpoint.failures and now - endpoint.failed_at > self._rest_s:
                endpoint.failed_at = now  # one request looks, the others do not wait for it
                return endpoint
        return min(self._endpoints, key=lambda e: (min(e.failures, 3), e.under_way))

    async def _ask(self, request: Request, content: list[dict[str, Any]]) -> list[Completion]:
        endpoint = self._choose()
        endpoint.under_way += 1
        try:
            if endpoint.is_vllm is None:
                await self._probe(endpoint)
            reply = await endpoint.client.chat.completions.create(
                **self._arguments(request, content, bool(endpoint.is_vllm))
            )
        except endpoints.ERRORS as error:
            if endpoints.may_pass(error):
                endpoint.failures, endpoint.failed_at = endpoint.failures + 1, asyncio.get_running_loop().time()
            raise
        finally:
            endpoint.under_way -= 1
        endpoint.failures = 0
        read = reply.usage.prompt_tokens if reply.usage else 0
        return [_completion(request, choice, 0 if i else read) for i, choice in enumerate(_choices(request, reply))]

    async def _probe(self, endpoint: _Endpoint) -> None:
        """Learn whether the endpoint is vLLM, and that it serves the model; once an endpoint."""
        async with self._probing:
            if endpoint.is_vllm is not None:
                return
            served = [model async for model in endpoint.client.models.list()]
            if served and self.model not in {model.id for model in served}:
                names = ", ".join(sorted(model.id for model in served)[:8])
                raise UserError(f"{endpoint.url} does not serve {self.model!r} but {names}; set engine.model_name")
            is_vllm = any(model.owned_by == "vllm" for model in served)
            if is_vllm and self._forbidden is None:
                known = self.tokenizer is not None
                self._forbidden = (
                    await asyncio.to_thread(tokens.forbidden_token_ids, str(self.tokenizer)) if known else ()
                )
            endpoint.is_vllm = is_vllm

    def _arguments(self, request: Request, content: list[dict[str, Any]], is_vllm: bool) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "n": request.n,
            "max_completion_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.stop:
            arguments["stop"] = list(request.stop)
        if request.seed is not None:
            arguments["seed"] = request.seed % 2**63
        if not is_vllm:
            if request.prefix:
                raise SamplingError(
                    f"{describe(request)}: only a vLLM server can continue from the prefix {request.prefix!r}"
                )
            return arguments
        extra: dict[str, Any] = {**NEUTRAL, "include_stop_str_in_output": True, "return_token_ids": True}
        if request.prefix:
            messages.append({"role": "assistant", "content": request.prefix})
            extra |= {"add_generation_prompt": False, "continue_final_message": True}
        if self._forbidden:
            arguments["logit_bias"] = {str(i): FORBIDDEN_BIAS for i in self._forbidden}
        return {**arguments, "logprobs": True, "extra_body": extra}


def _is_unconnected(error: BaseException | None) -> bool:
    """Whether nobody was there; a time-out or a fault of the server may be this one request's."""
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _content(request: Request) -> list[dict[str, Any]]:
    """The user's turn: pictures in order, then the text."""
    images = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
    return [*images, {"type": "text", "text": request.text}]


def _choices(request: Request, reply: Any) -> list[Any]:
    choices = sorted(reply.choices or (), key=lambda choice: choice.index)
    if len(choices) != request.n:
        raise SamplingError(f"{describe(request)}: {request.n} continuations were asked for and {len(choices)} came")
    return choices


def _completion(request: Request, choice: Any, read: int) -> Completion:
    if choice.finish_reason not in ("stop", "length"):
        raise SamplingError(f"{describe(request)}: the server ended with {choice.finish_reason!r}")
    logprobs = tuple(item.logprob for item in choice.logprobs.content or ()) if choice.logprobs else ()
    ids = tuple(getattr(choice, "token_ids", None) or ())
    if ids and len(ids) != len(logprobs):
        raise SamplingError(f"{describe(request)}: {len(ids)} tokens came with {len(logprobs)} log-probabilities")
    return Completion(choice.message.content or "", choice.finish_reason, ids, logprobs, read)


def _explain(error: Exception, request: Request, urls: Sequence[str], attempts: int) -> str:
    if isinstance(error, openai.APIStatusError):
        advice = {401: "; set OPENAI_API_KEY", 404: "; does the endpoint serve this model?"}.get(error.status_code, "")
        if request.images and error.status_code in REJECTED and _PICTURE_WORDS.search(error.message):
            advice = f"; does its model take pictures, and {len(request.images)} in one prompt (--limit-mm-per-prompt)?"
        tries = f" after {attempts} attempts" if endpoints.may_pass(error) else ""
        return f"the server refused it with {error.status_code}{tries}: {error.message}{advice}"
    return f"no answer from {', '.join(urls)} in {attempts} attempts ({error}); is a server running there?"
