"""The evaluation harness against the bare engine: answers per second on the same questions.

Two engines. The first is an endpoint that takes a fixed time per request in a few slots (`perf.endpoint`, in its own
process). It counts the share of its slot time that a client used, so no client's start-up is in the figure. The second is the
transformers engine over the SFT policy, where generating, writing and resuming are timed against the engine alone.

Other harnesses: `perf.peers_harness`.

Command: `python -m perf.harness --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import torch

from eval import base, generate, models
from fgrpo import cli, runs
from fgrpo.images import data_url
from fgrpo.inference.base import Request, Sampler
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.schema import Config
from perf.common import load, median, show
from perf.endpoint import in_own_process

SLOTS, SERVICE_S = 32, 2.0  # of the order of a real answer
QUESTIONS, ROUNDS = 192, 3
LOCAL_QUESTIONS = 200
SERVED = "scripted"  # the endpoint's model


def requests_of(cfg: Config, count: int) -> list[generate.Job]:
    """Greedy jobs of the first questions of CV-Bench's 2D half (`cvb_2d`)."""
    samples = base.load("cvb_2d", cfg).samples[:count]
    return generate.jobs(samples, models.load("backbone-cot"), cfg)


def bare(url: str, asked: Sequence[Request]) -> None:
    """The least that a client can do: read the picture, send, wait; `SLOTS` at a time."""

    async def work() -> None:
        gate = asyncio.Semaphore(SLOTS)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def one(request: Request) -> None:
                async with gate:
                    urls = [await asyncio.to_thread(data_url, path) for path in request.images]
                    images = [{"type": "image_url", "image_url": {"url": address}} for address in urls]
                    content: list[dict[str, object]] = [*images, {"type": "text", "text": request.text}]
                    messages: list[dict[str, object]] = [{"role": "user", "content": content}]
                    await client.chat.completions.create(
                        model=SERVED,
                        messages=messages,  # type: ignore[arg-type]
                        max_completion_tokens=request.max_new_tokens,
                        temperature=0.0,
                    )

            await asyncio.gather(*(one(request) for request in asked))

    asyncio.run(work())


def harness(sampler: Sampler, todo: Sequence[generate.Job], concurrency: int) -> None:
    """Generation as `make eval` does it, into a folder that is thrown away."""

    async def work(folder: str) -> None:
        try:
            await generate.generate(todo, sampler, Path(folder) / "generations.jsonl", concurrency=concurrency)
        finally:
            await sampler.close()

    with TemporaryDirectory() as folder:
        asyncio.run(work(folder))


def endpoint_table(cfg: Config) -> None:
    """Clients of the endpoint, alternating."""
    todo = requests_of(cfg, QUESTIONS)
    asked = [job.request for job in todo]
    clients: dict[str, Callable[[str], None]] = {
        "bare client": lambda url: bare(url, asked),
        "this harness": lambda url: harness(
            OpenAISampler([url], SERVED, forbidden=(), concurrency=SLOTS, timeout_s=120.0), todo, SLOTS
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            with in_own_process(SLOTS, SERVICE_S) as (url, statistics):
                client(url)
                rates[name].append(statistics()["per_second"])
    ideal = SLOTS / SERVICE_S
    first = median(rates["bare client"])
    rows = [("the endpoint's limit", f"{ideal:.1f}", "–")]
    rows += [
        (name, f"{median(per_second):.1f}", f"{median(per_second) / first:.2f}") for name, per_second in rates.items()
    ]
    words = (
        f"{len(todo)} questions with images to an endpoint of {SLOTS} slots and {SERVICE_S:g} s per request, {SLOTS} in flight, "
        f"{ROUNDS} alternating rounds; measured by the endpoint itself."
    )
    show("Harness: an endpoint", words, ("client", "answers per second", "over the bare client"), rows)


def local_table(cfg: Config, policy: Path) -> None:
    """The transformers engine alone, and through the harness."""
    todo = requests_of(cfg, LOCAL_QUESTIONS)
    spent: dict[str, list[float]] = {"the engine alone": [], "this harness": []}
    for _ in range(ROUNDS):
        for name, times in spent.items():
            sampler = TransformersSampler.load(policy, batch_size=cfg.eval.batch_size)
            began = time.perf_counter()
            if name == "this harness":
                harness(sampler, todo, cfg.engine.concurrency)
            else:
                sampler.complete([job.request for job in todo])
            times.append(time.perf_counter() - began)
    alone = median(spent["the engine alone"])
    rows = [(name, f"{len(todo) / median(times):.1f}", f"{alone / median(times):.2f}") for name, times in spent.items()]
    words = f"{len(todo)} greedy answers of the SFT policy, one core, {ROUNDS} alternating rounds, images read anew."
    show("Harness: the transformers engine", words, ("", "answers per second", "over the engine"), rows)


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        cfg = load(args, args.method, "eval.sampled_rollouts=0")
        policy = runs.require(runs.folder(cfg, "sft", args.runs) / "final", "sft")
        endpoint_table(cfg)
        local_table(cfg, policy)

    cli.run(body, cli.parser((__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    main()
