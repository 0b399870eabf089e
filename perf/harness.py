"""The evaluation harness against the bare engine and lmms-eval: answers per second on the same questions.

Two engines. The first is an endpoint that takes a fixed time per request in a few slots (`perf.endpoint`, in its own
process). It counts the share of its slot time that a client used, so no client's start-up is in the figure. The second is the
transformers engine over the SFT policy, where generating, writing and resuming are timed against the engine alone.

With `--lmms`, an interpreter that has lmms-eval (its own virtual environment: `pip install lmms-eval`), lmms-eval gets the
same questions of the miniature world's CV-Bench at the same endpoint, with the same number of requests in flight.

Command: `python -m perf.harness --preset mini [--lmms /tmp/lmms/bin/python]` (after `make sft`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import torch

from eval import base, generate, models
from fgrpo import cli, runs
from fgrpo.errors import UserError
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
TASK = """task: same_questions
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {parquet}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function same_questions.visual
doc_to_text: !function same_questions.text
doc_to_target: answer
process_results: !function same_questions.results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{max_new_tokens: 96, temperature: 0}}
"""
FUNCTIONS = """import io
from PIL import Image
def visual(doc): return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]
def text(doc, kwargs=None): return doc["question"]
def results(doc, result): return {"right": float(doc["answer"].strip("()") in result[0])}
"""


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


def lmms(python: str, url: str, cfg: Config) -> None:
    """lmms-eval over CV-Bench's questions. UserError if it fails (its last lines)."""
    (parquet,) = Path(cfg.data.root, "bench", "CV-Bench").rglob("test_2d.parquet")
    with TemporaryDirectory() as folder:
        Path(folder, "same_questions.yaml").write_text(TASK.format(parquet=parquet.resolve()), encoding="utf-8")
        Path(folder, "same_questions.py").write_text(FUNCTIONS, encoding="utf-8")
        settings = f"model_version={SERVED},base_url={url},api_key=none,num_concurrent={SLOTS},timeout=120"
        command = [python, "-m", "lmms_eval", "--model", "openai", "--model_args", settings, "--batch_size", "1"]
        command += ["--tasks", "same_questions", "--include_path", folder, "--limit", str(QUESTIONS)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode or "Traceback" in done.stderr:  # it ends with 0 where its evaluation failed
            raise UserError("lmms-eval failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-12:]))


def endpoint_table(cfg: Config, python: str | None) -> None:
    """Clients of the endpoint, alternating."""
    todo = requests_of(cfg, QUESTIONS)
    asked = [job.request for job in todo]
    clients: dict[str, Callable[[str], None]] = {
        "bare client": lambda url: bare(url, asked),
        "this harness": lambda url: harness(
            OpenAISampler([url], SERVED, forbidden=(), concurrency=SLOTS, timeout_s=120.0), todo, SLOTS
        ),
    }
    if python is not None:
        clients["lmms-eval"] = lambda url: lmms(python, url, cfg)
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
    if python is None:
        rows.append(("lmms-eval (not given: `--lmms`)", "–", "–"))
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
        endpoint_table(cfg, args.lmms)
        local_table(cfg, policy)

    arguments = cli.parser((__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--lmms",
        metavar="PYTHON",
        default=os.environ.get("LMMS_PYTHON"),
        help="an interpreter that has lmms-eval (default: $LMMS_PYTHON)",
    )
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
