"""The interface of every sampling engine: `n` continuations of one prompt, concurrently with others.

Callers start as many `sample` coroutines as they like; an engine batches requests that arrive together. No engine ever samples
image tokens or other special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fgrpo.policy.tokens import special_token

FORBIDDEN_BIAS = -100.0  # vLLM's lower bound for a token's bias


@dataclass(frozen=True)
class Request:
    """One prompt: images (paths), the user's text, and the existing beginning of the assistant's turn.

    `stop` strings end a continuation and are part of its text. `temperature` 0 is greedy. `seed` makes the continuations
    of this request repeatable if the engine supports it.
    """

    images: tuple[str, ...]
    text: str
    prefix: str = ""
    n: int = 1
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Completion:
    """One continuation (without the prefix). `logprobs` are those of `token_ids`, of the untempered distribution.

    `prompt_tokens` are those that an endpoint reports for the request, on its first continuation; 0 without a report.
    `reported_tokens` is the length that an endpoint reports for a request of one continuation, also without token ids.
    """

    text: str
    finish: Literal["stop", "length"]
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    reported_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Its length in tokens; 0 if it is not known."""
        return len(self.token_ids) or self.reported_tokens


class Sampler(Protocol):
    """An engine. `sample` raises `SamplingError` when the request cannot be served; it never returns fewer than `n`."""

    async def sample(self, request: Request) -> Sequence[Completion]: ...

    async def close(self) -> None: ...


class SamplingError(RuntimeError):
    """A request that failed for good, after the engine's own retries. Its message names the request.

    `is_transient`: the same request may succeed in a later run (an outage, a reply without text); otherwise it is refused.
    """

    is_transient = False


class TransientError(SamplingError):
    """The endpoint was down, overloaded or answered nonsense for longer than its patience."""

    is_transient = True


class NoText(TransientError):
    """The endpoint answered without text, or with a reply that cannot be read, in all attempts. It may do so every time."""


class Unreachable(TransientError):
    """No connection to any server in all attempts: another request would fail too."""


class UnusableImage(SamplingError):
    """An image of the request cannot be used: the data is at fault, not the engine."""


def describe(request: Request) -> str:
    """A request in one line, for error messages."""
    text = request.text if len(request.text) <= 80 else request.text[:77] + "..."
    return f"request {text!r} with images {list(request.images)}"


def check(request: Request) -> None:
    """Refuse a request that no engine could serve.

    Raises:
        SamplingError: a parameter out of range, or a special token written out in the text (an image token in a question
            would count as an image).
    """
    problem = None
    if request.n < 1 or request.max_new_tokens < 1:
        problem = f"n={request.n} and max_new_tokens={request.max_new_tokens} must be at least 1"
    elif not 0 <= request.temperature < float("inf") or not 0 < request.top_p <= 1:
        problem = f"temperature={request.temperature} must be 0 or more, and top_p={request.top_p} in (0, 1]"
    elif any(not stop for stop in request.stop):
        problem = "a stop string is empty"
    elif special := special_token(request.text) or special_token(request.prefix):
        problem = f"its text holds the special token {special!r}; remove it from the data"
    if problem:
        raise SamplingError(f"{describe(request)}: {problem}")
