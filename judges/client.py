"""A judge's call to an OpenAI-compatible endpoint: the body of its request, and the text of its reply.

The way there and back is `fgrpo.inference.client`, the client that sampling uses too. A call that fails for good is `Unanswered`
with the kind of its failure. What concerns every call (a refused key, a model that is not served, an exhausted quota) is a
UserError, and later calls are not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.inference import addresses, budget, client
from fgrpo.inference.clock import SYSTEM, Clock
from fgrpo.inference.connection import ServedModel
from fgrpo.inference.endpoint import FIRST_PATIENCE_S, Endpoint, Limits
from fgrpo.inference.failures import RequestFailed
from fgrpo.inference.parameters import fitted
from judges.base import Meter
from judges.requests import Call, Unusable

LONGEST_WAIT_S = 30.0  # that a Retry-After header may request
_LONGEST_BACKOFF = 8  # times `backoff_s`: endpoints that are down rest by themselves
CUT_OFF = "truncated at {} tokens; raise the judge's max_completion_tokens (for grounding, or set sentence_calls)"


class CutOff(Unusable):
    """A reply that was cut off at its token limit, which counts the reasoning of a judge that reasons."""


class Unanswered(Exception):
    """A call without a reply. `kind` groups such failures in counts."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Transport(Protocol):
    """Sends calls to one model; `urls` are a call's images.

    `ask` returns the text of a complete reply. It raises `CutOff`, another `Unusable` (a reply without a complete text),
    `Unanswered` (no reply), or UserError for what holds for every call. `widened`: how often the call was cut off before.
    """

    async def ask(self, call: Call, urls: Sequence[str], widened: int = 0) -> str: ...

    async def close(self) -> None: ...


class OpenAITransport:
    """Sends calls to the model and the endpoints that `config` names; works under any number of event loops.

    Raises:
        UserError: no API key for OpenAI's own endpoint (names the variable), or no server of its model behind the address
            files that `endpoints` names.
    """

    def __init__(self, config: schema.Judge, meter: Meter, clock: Clock = SYSTEM) -> None:
        addressed = addresses.resolve(config.endpoints, config.model, f"the endpoints of the judge {config.model}")
        self._config = config
        self._urls: tuple[str | None, ...] = tuple(map(addresses.normal_url, addressed)) or (None,)
        # OpenAI's own endpoint, whoever hosts it, refuses vLLM's structured choice
        self._takes_choices = bool(addressed) and not any(
            "openai." in urlsplit(url).netloc for url in self._urls if url
        )
        settings = "the judge's model", "the judge's leave_out", "the judge's api_key_env"
        served = ServedModel("judge", config.model, *settings, config.api_key_env)
        limits = _limits(config, len(self._urls))
        self._client = client.Client(self._urls, served, limits, meter, stops=True, clock=clock)

    async def ask(self, call: Call, urls: Sequence[str], widened: int = 0) -> str:
        """See `Transport`."""
        room = self._config.room(call.size, widened)

        async def body(endpoint: Endpoint) -> dict[str, Any]:
            return self._body(call, urls, room)

        reserved = estimate(call, urls, room)
        try:
            reply = await self._client.complete(
                body, reserved, takes_cut_off=True, timeout_s=self._config.seconds(widened)
            )
        except RequestFailed as error:
            failure = error.failure
            raise (
                UserError(failure.detail) if failure.action == "stop" else Unanswered(failure.kind, failure.detail)
            ) from None
        (choice,) = reply.choices
        if choice.finish == "length":
            raise CutOff(CUT_OFF.format(room))
        return choice.text

    @property
    def slots(self) -> int:
        """Calls that are sent at a time, over all endpoints."""
        return self._config.concurrency * len(self._urls)

    async def check(self) -> None:
        """See `fgrpo.inference.client.Client.check`; the request that may be sent has this judge's parameters."""
        first = Call("check", "Answer with the word yes.", "", lambda reply: ())

        async def body(endpoint: Endpoint) -> dict[str, Any]:
            return self._body(first, (), self._config.room(1))

        try:
            await self._client.check(body, estimate(first, (), self._config.room(1)))
        finally:
            await self._client.close()  # of this event loop, which may end with the check

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._client.close()

    def _body(self, call: Call, urls: Sequence[str], room: int) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": call.text})
        c = self._config
        body: dict[str, Any] = {
            "model": c.model,
            "messages": messages(call, content),
            "max_completion_tokens": room,
        }
        if c.reasoning_effort is not None:
            body["reasoning_effort"] = c.reasoning_effort  # such models take no temperature
        else:
            body["temperature"] = 0.0
        if call.choices and self._takes_choices:
            body["structured_outputs"] = {"choice": list(call.choices)}  # vLLM's structured choice
        elif call.schema is not None:
            form = {"name": call.role, "strict": True, "schema": call.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return fitted(body, c.leave_out)


def messages(call: Call, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat of a call: its system's message, if it has one, and the user's turn."""
    system = [{"role": "system", "content": call.system}] if call.system else []
    return [*system, {"role": "user", "content": content}]


def estimate(call: Call, urls: Sequence[str], most: int) -> tuple[int, int]:
    """Tokens that a call will read, roughly, and write, at most: its reservation before its reply gives the usage."""
    return budget.estimate(call.system + call.text, len(urls), most)


def _limits(config: schema.Judge, endpoints: int) -> Limits:
    return Limits(
        config.concurrency * endpoints,
        per_endpoint=config.concurrency,
        attempts=config.attempts,
        repeats_itself=not config.samples,
        timeout_s=config.timeout_s,
        patience_s=config.patience_s,
        first_patience_s=FIRST_PATIENCE_S,
        first_wait_s=config.backoff_s,
        longest_backoff_s=_LONGEST_BACKOFF * config.backoff_s,
        longest_wait_s=LONGEST_WAIT_S,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
    )
