"""The teacher of a search: proposes steps and completes traces over any sampling engine.

A step is a continuation up to a line break or `</answer>`. A rollout is a continuation up to `</answer>`. A step that stops at a
blank line, or inside the closing of the trace ("…</think>" and a line break), is continued a bounded number of times. Unusable
text never raises: the step has a one-word `problem`, which the search counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fgrpo.inference.base import Completion, NoText, Request, Sampler
from fgrpo.policy.tokens import special_token
from fgrpo.schema import Mcts
from fgrpo.types import Sample
from mcts.tree import read_chain

END_OF_ANSWER = "</answer>"
END_OF_THINK = "</think>"
STEP_STOPS = ("\n", END_OF_ANSWER)
TAGS = ("<think>", END_OF_THINK, "<answer>", END_OF_ANSWER)
CONTINUATIONS = 2  # per step, after a blank line or a partly closed trace
DIGITS = 4  # of log-probabilities; further digits depend on the composition of the batch


@dataclass(frozen=True)
class Step:
    """One proposed action: a reasoning line, and the answer if it closes the trace.

    `logprob` is the mean over its tokens. `problem` is the reason why it is unusable, or None.
    """

    text: str
    answer: str | None
    logprob: float
    tokens: int
    problem: str | None = None


@dataclass(frozen=True)
class Ending:
    """The text of one rollout after a state. `finished` is False if it was truncated at the token limit."""

    text: str
    tokens: int
    finished: bool


class Teacher(Protocol):
    """Proposes steps and rollouts for one question.

    `state` is the teacher's text so far. Equal seeds request equal replies. `requests` counts requests, and `read_tokens` the
    prompt tokens that the engine reports for them.

    Raises:
        fgrpo.inference.base.SamplingError: the engine cannot serve the request (both methods).
    """

    requests: int
    read_tokens: int

    async def steps(self, state: str, n: int, seed: int) -> list[Step]: ...

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]: ...


class SamplerTeacher:
    """A `Teacher` for one sample over a sampling engine.

    Args:
        sampler: the engine.
        sample: the question, whose images the teacher sees.
        text: the user turn.
        settings: temperature, top_p and token limits.
    """

    def __init__(self, sampler: Sampler, sample: Sample, text: str, settings: Mcts) -> None:
        self._sampler, self._sample, self._text, self._settings = sampler, sample, text, settings
        self.requests, self.read_tokens = 0, 0

    async def steps(self, state: str, n: int, seed: int) -> list[Step]:
        """`n` proposals for the next step, usable or not."""
        replies = await self._request(state, n, seed, STEP_STOPS, self._settings.step_max_new_tokens)
        steps = (self._complete_step(state, reply, seed + 1 + i) for i, reply in enumerate(replies))
        return await asyncio.gather(*steps)

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]:
        """`n` completions of `state`."""
        replies = await self._request(state, n, seed, (END_OF_ANSWER,), self._settings.rollout_max_new_tokens)
        return [Ending(reply.text, len(reply.token_ids), reply.finish == "stop") for reply in replies]

    async def _complete_step(self, state: str, reply: Completion, seed: int) -> Step:
        """Continue a reply until it is a full line or a closed trace, then parse it."""
        text, ids, logprobs, finish = reply.text, list(reply.token_ids), list(reply.logprobs), reply.finish
        for attempt in range(CONTINUATIONS):
            closing = END_OF_THINK in text and END_OF_ANSWER not in text
            if finish == "length" or not text.endswith("\n") or not (closing or not text.strip()):
                break
            stops = (END_OF_ANSWER,) if closing else STEP_STOPS
            limit = self._settings.step_max_new_tokens
            try:
                (continuation,) = await self._request(state + text, 1, seed + 1000 * attempt, stops, limit)
            except NoText:  # the other proposals of this state are good
                return Step(text.strip(), None, _mean(logprobs), len(ids), "no_text")
            text, finish = text + continuation.text, continuation.finish
            ids += continuation.token_ids
            logprobs += continuation.logprobs
        return read_step(state, text, finish == "length", _mean(logprobs), len(ids))

    async def _request(self, prefix: str, n: int, seed: int, stop: tuple[str, ...], limit: int) -> Sequence[Completion]:
        self.requests += 1
        request = Request(
            images=self._sample.images,
            text=self._text,
            prefix=prefix,
            n=n,
            max_new_tokens=limit,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            stop=stop,
            seed=seed,
        )
        replies = await self._sampler.sample(request)
        self.read_tokens += sum(reply.prompt_tokens for reply in replies)
        return replies


def _mean(logprobs: Sequence[float]) -> float:
    return round(sum(logprobs) / len(logprobs), DIGITS) if logprobs else 0.0


def is_clean_text(text: str) -> bool:
    """Whether `text` can be fed to a model again: it contains no special token and no broken character."""
    return "\ufffd" not in text and not special_token(text)


def read_step(state: str, text: str, truncated: bool, logprob: float, tokens: int) -> Step:
    """Parse the text that followed `state` into a step.

    Problems beside `no_text` (a continuation without text): `special_token`, `broken_text` (half of a character), `unended` (truncated at the token limit), `ended_early` (the
    turn ended without an answer), `blank`, `malformed` (misplaced tags, or not exactly one closed answer).

    Args:
        truncated: whether the text ends at the token limit.
        logprob: mean token log-probability.
        tokens: number of generated tokens.
    """

    def rejected(problem: str) -> Step:
        return Step(text.strip(), None, logprob, tokens, problem)

    if not is_clean_text(text):
        return rejected("special_token" if special_token(text) else "broken_text")
    if END_OF_THINK in text and END_OF_ANSWER in text:
        chain = read_chain(state + text)
        if chain is None:
            return rejected("malformed")
        line = text.partition(END_OF_THINK)[0].strip()
        if "\n" in line:
            return rejected("malformed")
        return Step(line, chain.answer, logprob, tokens)
    if truncated:
        return rejected("unended")
    if not text.strip():
        return rejected("blank")
    if any(tag in text for tag in TAGS):
        return rejected("malformed")
    if not text.endswith("\n"):
        return rejected("ended_early")
    return Step(text.strip(), None, logprob, tokens)
