"""The teacher of a search: what proposes steps and completes reasonings, over any sampling engine.

One step is a continuation up to a line break or `</answer>`; a rollout is a continuation up to `</answer>`. A step that stops
in the middle of closing the trace ("…</think>" and a line break) or at a blank line is continued, a bounded number of times.
What cannot be used comes back with a `problem` in one word, for the search to count: it never raises for the teacher's text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fgrpo.inference.base import Completion, Request, Sampler
from fgrpo.policy.tokens import special_token
from fgrpo.schema import Mcts
from fgrpo.types import Sample
from mcts.tree import read_chain

END_OF_ANSWER = "</answer>"
END_OF_THINK = "</think>"
STEP_STOPS = ("\n", END_OF_ANSWER)
TAGS = ("<think>", END_OF_THINK, "<answer>", END_OF_ANSWER)
CONTINUATIONS = 2  # of one step, past a blank line or a half-closed trace
DIGITS = 4  # of log-probabilities: the digits beyond depend on what a request was batched with


@dataclass(frozen=True)
class Step:
    """One proposed action: a reasoning line, and the answer where it closes the trace. `logprob` is the mean over tokens."""

    text: str
    answer: str | None
    logprob: float
    tokens: int
    problem: str | None = None


@dataclass(frozen=True)
class Ending:
    """One rollout's text from a state on. `finished` says that it ended by itself, not by its length."""

    text: str
    tokens: int
    finished: bool


class Teacher(Protocol):
    """Proposes for one question. `state` is what the teacher has written so far; equal seeds ask for equal replies.

    Both raise `fgrpo.inference.base.SamplingError` when the engine cannot serve the request. `requests` counts them, and
    `read_tokens` what the engine says it read for them.
    """

    requests: int
    read_tokens: int

    async def steps(self, state: str, n: int, seed: int) -> list[Step]: ...

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]: ...


class SamplerTeacher:
    """A `Teacher` for one sample over an engine.

    Args:
        sampler: the engine.
        sample: whose pictures the teacher sees.
        text: the user's turn.
        settings: temperature, top_p, token limits.
    """

    def __init__(self, sampler: Sampler, sample: Sample, text: str, settings: Mcts) -> None:
        self._sampler, self._sample, self._text, self._settings = sampler, sample, text, settings
        self.requests, self.read_tokens = 0, 0

    async def steps(self, state: str, n: int, seed: int) -> list[Step]:
        """`n` proposals for the next step, usable or not."""
        replies = await self._ask(state, n, seed, STEP_STOPS, self._settings.step_max_new_tokens)
        whole = (self._whole_step(state, reply, seed + 1 + i) for i, reply in enumerate(replies))
        return await asyncio.gather(*whole)

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]:
        """`n` completions of `state`."""
        replies = await self._ask(state, n, seed, (END_OF_ANSWER,), self._settings.rollout_max_new_tokens)
        return [Ending(reply.text, len(reply.token_ids), reply.finish == "stop") for reply in replies]

    async def _whole_step(self, state: str, reply: Completion, seed: int) -> Step:
        """Continue a reply until it is a line or a closed trace, then read it."""
        text, ids, logprobs, finish = reply.text, list(reply.token_ids), list(reply.logprobs), reply.finish
        for attempt in range(CONTINUATIONS):
            closing = END_OF_THINK in text and END_OF_ANSWER not in text
            if finish == "length" or not text.endswith("\n") or not (closing or not text.strip()):
                break
            stops = (END_OF_ANSWER,) if closing else STEP_STOPS
            limit = self._settings.step_max_new_tokens
            (more,) = await self._ask(state + text, 1, seed + 1000 * attempt, stops, limit)
            text, finish = text + more.text, more.finish
            ids += more.token_ids
            logprobs += more.logprobs
        mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
        return read_step(state, text, finish == "length", round(mean, DIGITS), len(ids))

    async def _ask(self, prefix: str, n: int, seed: int, stop: tuple[str, ...], limit: int) -> Sequence[Completion]:
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


def is_plain(text: str) -> bool:
    """Whether `text` can be given to a model again as it stands: no special token written out, no half characters."""
    return "\ufffd" not in text and not special_token(text)


def read_step(state: str, text: str, cut: bool, logprob: float, tokens: int) -> Step:
    """Make a step of the text that followed `state`.

    Problems: `special_token`, `broken_text` (half of a character), `unended` (cut at its length), `ended_early` (the turn ended without an answer), `blank`,
    `malformed` (tags where none belong, or no single closed answer).
    """

    def bad(problem: str) -> Step:
        return Step(text.strip(), None, logprob, tokens, problem)

    if not is_plain(text):
        return bad("special_token" if special_token(text) else "broken_text")
    if END_OF_THINK in text and END_OF_ANSWER in text:
        chain = read_chain(state + text)
        if chain is None:
            return bad("malformed")
        line = text.partition(END_OF_THINK)[0].strip()
        if "\n" in line:
            return bad("malformed")
        return Step(line, chain.answer, logprob, tokens)
    if cut:
        return bad("unended")
    if not text.strip():
        return bad("blank")
    if any(tag in text for tag in TAGS):
        return bad("malformed")
    if not text.endswith("\n"):
        return bad("ended_early")
    return Step(text.strip(), None, logprob, tokens)
