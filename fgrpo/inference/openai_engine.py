"""Sampling from OpenAI-compatible endpoints: vLLM servers, one or many, or a closed model behind its own.

Renders a request into the body of a chat completion and reads choices and log-probabilities. Everything about the way there and
back is `fgrpo.inference.client`: the choice of the endpoint, retries, endpoints that are restarted. A request that the endpoint
refuses is a `SamplingError`, also with a refused key: the caller counts refusals and knows when to give up.

A vLLM server gets what keeps it equal to the transformers engine: the assistant's turn is continued from `prefix`, stop
strings stay in the text, forbidden tokens have a bias of -100, and the sampling defaults that the server would take from
the model's generation_config.json are overridden. Other servers know none of that: a prefix is refused there, and they get only
what differs from the API's defaults. `leave_out` names further parameters that a server does not take. The random numbers of a
seed are the server's own.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import data_url
from fgrpo.inference import addresses
from fgrpo.inference.base import (
    FORBIDDEN_BIAS,
    Completion,
    NoText,
    Request,
    SamplingError,
    TransientError,
    Unreachable,
    UnusableImage,
    check,
    describe,
)
from fgrpo.inference.budget import UsageMeter, estimate
from fgrpo.inference.client import Client
from fgrpo.inference.clock import SYSTEM, Clock
from fgrpo.inference.connection import ServedModel
from fgrpo.inference.endpoint import FIRST_PATIENCE_S, Endpoint, Limits
from fgrpo.inference.failures import Failure, RequestFailed
from fgrpo.inference.parameters import fitted
from fgrpo.inference.replies import Choice, Reply
from fgrpo.policy import tokens
from fgrpo.policy.model_files import processor_arguments
from fgrpo.response import with_trace

_EQUAL_ROUNDS = 3  # a request of which a choice has no text is sent again as it is, then for the missing choices alone
_SEED_STRIDE = 1_000_003  # between the seeds of a request and of what is requested again
DEFAULTS: dict[str, Any] = {"n": 1, "top_p": 1.0}  # of the API; equal values are not sent
REJECTED = (400, 413, 415, 422, 500)  # statuses of servers that cannot take the images
_IMAGE_WORDS = re.compile(r"image|multi-?modal|vision|content type", re.IGNORECASE)
NEUTRAL: dict[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}  # not the model's generation_config.json


class OpenAISampler:
    """A `Sampler` over endpoints that serve one model.

    Args:
        endpoints: addresses such as "http://host:8000/v1" ("/v1" is added where there is no path), or address files
            (`fgrpo.inference.addresses`).
        model: the served model's name.
        tokenizer: folder or hub name of its tokenizer, from which the forbidden tokens are read; None forbids none.
        forbidden: ids to forbid instead of reading `tokenizer`.
        pixels: bounds of a resized image, in place of those of the served processor; None leaves it its own.
        concurrency: requests in flight, over all endpoints.
        leave_out: parameters that the server does not take (`fgrpo.inference.parameters.fitted`).
        key_variable: environment variable of the endpoints' API key (`fgrpo.inference.connection.variable_for`).
        attempts, timeout_s: attempts per request, and seconds per attempt.
        longest_wait_s: seconds between two attempts at most, also where a Retry-After header requests more.
        patience_s: how long a request is retried while the fault is an endpoint's (0: `attempts` only).
        rest_s: the longest time for which an endpoint that is down gets no request.
        meter: counts requests, tokens, retries and faults; a new one by default.
        clock: measures the patience and waits between attempts.

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
        pixels: PixelBounds | None = None,
        concurrency: int = 64,
        leave_out: Sequence[str] = (),
        key_variable: str | None = None,
        attempts: int = 8,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
        patience_s: float = 0.0,
        rest_s: float = 15.0,
        meter: UsageMeter | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        if not endpoints:
            raise UserError(
                'engine.kind is "openai" but engine.endpoints is empty; give one, such as ["http://localhost:8000/v1"]'
            )
        self.urls = [addresses.normal_url(e) for e in addresses.resolve(endpoints, model, "engine.endpoints")]
        self.model, self.tokenizer, self._leave_out = model, tokenizer, frozenset(leave_out)
        self.meter = UsageMeter(name=model) if meter is None else meter
        self._forbidden = None if forbidden is None else tuple(forbidden)
        self._pixels = None if pixels is None else processor_arguments(pixels)
        self._untrained: frozenset[int] = frozenset()
        self._reading_tokenizer = threading.Lock()
        limits = Limits(
            concurrency,
            attempts=attempts,
            timeout_s=timeout_s,
            patience_s=patience_s,
            first_patience_s=FIRST_PATIENCE_S,
            longest_backoff_s=longest_wait_s,
            longest_wait_s=longest_wait_s,
            longest_rest_s=rest_s,
        )
        file = "(or the model's file)"
        settings = "engine.model_name", f"engine.leave_out {file}", f"engine.api_key_env {file}"
        served = ServedModel("endpoint", model, *settings, key_variable)
        self._client = Client(self.urls, served, limits, self.meter, checks_model=True, clock=clock)

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` continuations.

        Raises:
            SamplingError: the request cannot be served; a `TransientError` if a later run may succeed.
            UserError: an endpoint serves other models, or reads tags as untrained tokens; or the tokenizer cannot be read.
        """
        check(request)
        choices: tuple[Choice, ...] = ()
        prompt_tokens = reported = rounds = 0
        while (missing := request.n - len(choices)) > 0:
            if rounds < _EQUAL_ROUNDS:  # so that a fault in passing leaves what an undisturbed request has
                reply = await self._reply(request)
                if len(reply.choices) > len(choices):
                    choices, prompt_tokens = reply.choices, _prompt_tokens(reply)
                    reported = reply.usage[1] if reply.usage and request.n == 1 else 0
            else:
                seed = None if request.seed is None else request.seed + rounds * _SEED_STRIDE
                reply = await self._reply(replace(request, n=missing, seed=seed))
                choices, prompt_tokens = choices + reply.choices, prompt_tokens + _prompt_tokens(reply)
            rounds += 1
        return [_completion(request, choice, 0 if i else prompt_tokens, reported) for i, choice in enumerate(choices)]

    async def _reply(self, request: Request) -> Reply:
        """A reply with at least one usable choice. Raises as `sample`."""

        async def body(endpoint: Endpoint) -> dict[str, Any]:
            return await self._body(request, endpoint.is_vllm)

        reserved = estimate(request.text + request.prefix, len(request.images), request.n * request.max_new_tokens)
        try:
            may_be_blank = any(not stop.strip() for stop in request.stop)  # a step up to a line break
            reply = await self._client.complete(body, reserved, request.n, takes_blank=may_be_blank)
        except RequestFailed as error:
            raise _error(error.failure)(f"{describe(request)}: {_explain(error, request, self.urls)}") from error
        if not self._untrained.isdisjoint(reply.prompt_ids):
            raise UserError(
                f"the server of {self.model} reads a tag of the answer format as one token, which this checkpoint never learned; start it "
                "with `make serve-…`, or give it --tokenizer with the processor that `python -m fgrpo.policy.plain_tags <folder>` wrote"
            )
        return reply

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._client.close()

    async def _body(self, request: Request, is_vllm: bool) -> dict[str, Any]:
        """The JSON body of a request, for a vLLM server or any other."""
        try:
            content = await asyncio.to_thread(_content, request) if request.images else _content(request)
        except UserError as error:
            raise UnusableImage(f"{describe(request)}: {error}") from error
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "n": request.n,
            "max_completion_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed % 2**63
        if not is_vllm:
            if request.prefix:
                raise SamplingError(
                    f"{describe(request)}: only a vLLM server can continue from the prefix {request.prefix!r}"
                )
            if self._pixels is not None and request.images:
                raise SamplingError(
                    f"{describe(request)}: only a vLLM server can be told the bounds of an image ({self._pixels}); unset pixels "
                    "(policy.pixels, or of the model's file), or serve the model with vLLM"
                )
            changed = {name: value for name, value in body.items() if DEFAULTS.get(name) != value}
            return fitted(changed, self._leave_out)
        body |= {**NEUTRAL, "include_stop_str_in_output": True, "return_token_ids": True, "logprobs": True}
        if request.prefix:
            messages.append({"role": "assistant", "content": request.prefix})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if self._pixels is not None and request.images:
            body["mm_processor_kwargs"] = self._pixels
        if self._forbidden is None:
            await asyncio.to_thread(self._read_forbidden)
        if self._forbidden:
            body["logit_bias"] = {str(i): FORBIDDEN_BIAS for i in self._forbidden}
        return fitted(body, self._leave_out)

    def _read_forbidden(self) -> None:
        """Read the forbidden tokens once, whichever request comes first."""
        with self._reading_tokenizer:
            if self._forbidden is None and self.tokenizer is not None:
                tokens.check_served_tags(str(self.tokenizer))
                self._forbidden = tokens.forbidden_token_ids(str(self.tokenizer))
                self._untrained = frozenset(tokens.untrained_ids(str(self.tokenizer)))
            self._forbidden = self._forbidden or ()


def _content(request: Request) -> list[dict[str, Any]]:
    """The user's turn: images in order, then the text."""
    images = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
    return [*images, {"type": "text", "text": request.text}]


def _prompt_tokens(reply: Reply) -> int:
    return reply.usage[0] if reply.usage else 0


def _completion(request: Request, choice: Choice, prompt_tokens: int, reported: int = 0) -> Completion:
    """A choice as a completion, with reasoning of a field of its own as its trace."""
    text = with_trace(choice.text, choice.reasoning, request.prefix)
    return Completion(text, choice.finish, choice.token_ids, choice.logprobs, prompt_tokens, reported)


def _error(failure: Failure) -> type[SamplingError]:
    """The kind of error that a failure is to callers of a sampler."""
    if failure.is_unreachable:
        return Unreachable
    if not failure.is_transient:
        return SamplingError
    return NoText if failure.is_alive and not failure.by_time else TransientError


def _explain(error: RequestFailed, request: Request, urls: Sequence[str]) -> str:
    """What a failed request's error says after the request: the endpoint's message, and what to do."""
    failure = error.failure
    if failure.status is not None and failure.action != "stop":
        advice = ""
        if request.images and failure.status in REJECTED and _IMAGE_WORDS.search(failure.detail):
            advice = f"; does its model take images, and {len(request.images)} in one prompt (--limit-mm-per-prompt)?"
        attempts = f" after {error.tries}" if failure.action == "retry" else ""
        return f"the server refused it with {failure.status}{attempts}: {failure.detail}{advice}"
    if failure.action == "retry" and failure.is_alive:
        return f"no usable reply in {error.tries} ({failure.kind}: {failure.detail})"
    if failure.action == "retry":
        return (
            f"no answer from {', '.join(map(addresses.shown, urls))} in {error.tries} ({failure.kind}: {failure.detail}); "
            "is a server running there?"
        )
    return failure.detail
