"""Run by .venv-vllm's interpreter (tests/vllm/test_eval.py): vLLM's engine without a server, in one start.

Evaluates a model through `fgrpo.inference.build`, then asks the engine what it must refuse, and prints one line of JSON.
Command: `.venv-vllm/bin/python tests/vllm/offline.py RUNS MODEL BENCHMARKS KEY=VALUE …`
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import base, generate, models, run
from fgrpo import inference
from fgrpo.config import load
from fgrpo.inference.base import Completion, Request, Sampler, SamplingError
from fgrpo.policy import tokens


class Open:
    """A sampler that belongs to another event loop, and is left open by whoever is done with it."""

    def __init__(self, inner: Sampler, loop: asyncio.AbstractEventLoop) -> None:
        self.inner, self.loop = inner, loop

    async def ask(self, request: Request) -> Sequence[Completion]:
        return await self.inner.sample(request)

    async def sample(self, request: Request) -> Sequence[Completion]:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.ask(request), self.loop))

    async def close(self) -> None:
        return None


async def refusal(sampler: Sampler, request: Request) -> str:
    """What the engine says to a request that it cannot serve."""
    try:
        await sampler.sample(request)
    except SamplingError as error:
        return str(error)
    return ""


async def probe(sampler: Sampler, request: Request, path: str) -> dict[str, Any]:
    """Forbidden tokens sampled when hot (none), seeds, and refusals."""
    hot = replace(request, temperature=2.0, n=32, seed=0, max_new_tokens=32, text="? ? .")
    answers = await sampler.sample(hot)
    again = await sampler.sample(hot)
    forbidden = set(tokens.forbidden_token_ids(path))
    return {
        "sampled": sum(len(c.token_ids) for c in answers),
        "forbidden": sorted(forbidden & {t for c in answers for t in c.token_ids}),
        "seeds repeat": [c.text for c in answers] == [c.text for c in again],
        "logprobs": all(len(c.logprobs) == len(c.token_ids) for c in answers),
        "too long": await refusal(sampler, replace(request, text=request.text * 200)),
        "too many pictures": await refusal(sampler, replace(request, images=request.images * 9)),
        "no picture there": await refusal(sampler, replace(request, images=("nowhere.png",))),
    }


def main() -> None:
    runs, model, benchmarks, *overrides = sys.argv[1:]
    config = load("smoke", "fgrpo", overrides)
    spec = models.load(model)
    path = models.checkpoint(spec, config, runs)
    names = benchmarks.split(",")
    job = generate.jobs(base.load(names[0], config).samples[:1], spec, config)[0]

    async def work() -> dict[str, Any]:
        engine = inference.build(models.engine_config(spec, config), path)
        try:
            shared = Open(engine, asyncio.get_running_loop())
            folder = await asyncio.to_thread(run.evaluate, config, model, names, Path(runs), shared)
            return {"folder": str(folder), "engine": type(engine).__name__, **await probe(engine, job.request, path)}
        finally:
            await engine.close()

    print(json.dumps(asyncio.run(work())))


if __name__ == "__main__":
    main()
