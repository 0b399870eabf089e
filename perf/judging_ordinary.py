"""Judging a batch of rollouts: reward functions written the ordinary way for TRL against the judging service.

Both ordinary forms use the `openai` client with its own two retries: one call after the other in a list comprehension, and all
calls at once under `asyncio.gather`. A call that fails in the end, or whose reply is no verdict, is a lost verdict (such functions
return 0.0 for it, or end the run). The service gets the same questions, prompts, time-out and judge. The judge takes a fixed
time per call however many are in flight.

Command: `python -m perf.judging_ordinary` (`--batch 64 --rounds 3`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from judges.backends.openai import BACKEND
from judges.client import OpenAITransport
from perf.common import median, ratio, show, spread
from perf.judging import config, items, served
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem

SERVICE_S, LIMIT_S, FAULTS = 0.2, 1.0, 0.3
LABELS = {"CONSISTENT": 1.0, "INCONSISTENT": 0.0}

RewardFunction = Callable[[str, Sequence[ConsistencyItem]], list[float | None]]


def bodies(url: str, asked: Sequence[ConsistencyItem]) -> list[dict[str, Any]]:
    """The bodies that the service sends for these questions, so that all clients send the same."""
    judge = config(url)
    body = OpenAITransport(judge, BACKEND(judge, Path()).meter)._body
    return [body(CONSISTENCY_TASK.call(item), (), judge.room(1)) for item in asked]


def reward_of(reply: Any) -> float:
    """The reward of a chat completion. ValueError, KeyError, TypeError or AttributeError: it is no verdict."""
    return LABELS[json.loads(reply.choices[0].message.content)["label"]]


def one_by_one(url: str, asked: Sequence[ConsistencyItem]) -> list[float | None]:
    """A list comprehension of calls; None: the call failed."""
    client = openai.OpenAI(base_url=url, api_key="none", timeout=LIMIT_S)

    def judge(body: dict[str, Any]) -> float | None:
        try:
            return reward_of(client.chat.completions.create(**body))
        except Exception:  # noqa: BLE001 - what such functions catch; counted as a lost verdict
            return None

    with client:
        return [judge(body) for body in bodies(url, asked)]


def gathered(url: str, asked: Sequence[ConsistencyItem]) -> list[float | None]:
    """All calls at once; None: the call failed."""

    async def work() -> list[float | None]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=LIMIT_S) as client:

            async def judge(body: dict[str, Any]) -> float | None:
                try:
                    return reward_of(await client.chat.completions.create(**body))
                except Exception:  # noqa: BLE001 - as above
                    return None

            return list(await asyncio.gather(*map(judge, bodies(url, asked))))

    return asyncio.run(work())


def service(url: str, asked: Sequence[ConsistencyItem]) -> list[float | None]:
    """The judging service; None: no verdict."""

    async def work() -> list[float | None]:
        judges = BACKEND(config(url, attempts=14, timeout_s=LIMIT_S, backoff_s=0.05), Path())
        try:
            verdicts = await judges.ask(CONSISTENCY_TASK, list(asked))
        finally:
            await judges.close()
        return [None if verdict.failed else LABELS[str(verdict.label)] for verdict in verdicts]

    return asyncio.run(work())


FUNCTIONS: dict[str, RewardFunction] = {
    "list comprehension of calls": one_by_one,
    "`asyncio.gather` of calls": gathered,
    "the service": service,
}


@dataclass(frozen=True)
class Batch:
    """Seconds of one batch, its rollouts, and those without a verdict."""

    seconds: float
    rollouts: int
    lost: int


def judged(function: RewardFunction, url: str, asked: Sequence[ConsistencyItem]) -> Batch:
    """Time one batch.

    Raises:
        ValueError: a reward that the judge, which says "consistent" to everything, has not given.
    """
    began = time.perf_counter()
    rewards = function(url, asked)
    seconds = time.perf_counter() - began
    wrong = [reward for reward in rewards if reward not in (1.0, None)]
    if wrong or len(rewards) != len(asked):
        raise ValueError(f"{len(asked)} questions, {len(rewards)} rewards, of which wrong: {wrong[:3]}")
    return Batch(seconds, len(asked), sum(reward is None for reward in rewards))


HEADINGS = ("reward function", "seconds per batch", "over the service", "verdicts lost")


def table(found: dict[tuple[str, float], list[Batch]]) -> list[tuple[str, ...]]:
    """Rows from the batches of (function, share of faults); ratios to the service with the same faults."""
    rows: list[tuple[str, ...]] = []
    last = list(FUNCTIONS)[-1]
    for (name, faults), batches in found.items():
        seconds = [b.seconds for b in batches]
        base = [b.seconds for b in found[last, faults]]
        lost, of = sum(b.lost for b in batches), sum(b.rollouts for b in batches)
        shown = f"{name}, {faults:.0%} faults" if faults else name
        rows.append((shown, spread(seconds, ".2f"), ratio(seconds, base), f"{lost / of:.1%} ({lost} of {of})"))
    return rows


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()
    found: dict[tuple[str, float], list[Batch]] = {(name, f): [] for f in (0.0, FAULTS) for name in FUNCTIONS}
    for n in range(args.rounds):
        for (name, faults), batches in found.items():
            with served(SERVICE_S, faults) as url:
                batches.append(judged(FUNCTIONS[name], url, items(args.batch, n * args.batch)))
    best = median([b.seconds for b in found[list(FUNCTIONS)[-1], 0.0]]) / SERVICE_S
    show(
        "Judging: reward functions written the ordinary way",
        f"Batches of {args.batch} rollouts, {1000 * SERVICE_S:.0f} ms per call however many are in flight, {args.rounds} alternating rounds; "
        f"time-out {LIMIT_S:g} s. With faults, {FAULTS:.0%} of the replies are lost (500, 503, 429, closed, a page, cut, silence). The "
        f"service's batch without faults takes {best:.1f} times one call. In brackets the lowest and highest round.",
        HEADINGS,
        table(found),
    )


if __name__ == "__main__":
    main()
