"""Families besides the default one on the real vLLM: the same tokens as in process, evaluation, FGRPO behind the rollout server."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import run
from fgrpo.boxes import PixelBounds
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.base import Completion, Request, Sampler
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.serve import order
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT, CPU_FLAGS, Server
from fgrpo.policy import backbone, backbones, loading, tokens
from fgrpo.policy.backbone import Backbone
from miniworld import questions
from miniworld.render import render
from tests.families.conftest import taught
from tests.vllm.test_eval import same
from tests.vllm.test_rollouts import (
    HERE,
    LIMIT_S,
    PYTHON,
    ROOT,
    STEPS,
    check_metrics,
    check_run,
    finished,
    rollout_server,
    second_root,
    started,
    world_of,
)

LOGPROB_TOLERANCE = 1e-4
BENCHMARKS = ("cvb_2d", "mindcube")


@pytest.fixture(scope="module", params=[name for name in backbone.names() if name != backbones.DEFAULT])
def family(request: pytest.FixtureRequest) -> Backbone:
    """Each family whose tiny model no other test serves."""
    torch.set_num_threads(1)
    return backbone.lookup(request.param)


@pytest.fixture(scope="module")
def policy(family: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as its hub folder would be, with weights that know a few questions."""
    folder = tmp_path_factory.mktemp("tiny")
    builder = importlib.import_module(f"tests.families.{family.model_type}")
    made = Path(builder.build(folder / family.model_type))
    shutil.copy(taught(family, made, folder).teacher / "model.safetensors", made)
    return made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """Greedy requests with one and two pictures, continued from a trace that has begun, and hot ones."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(11)
    made = []
    for n, kind in enumerate(("hrel", "view", "count", "moved", "depth", "vrel")):
        question, paths = questions.make(kind, rng), []
        for k, scene in enumerate(question.scenes):
            picture = render(scene, rng)
            picture.resize((224, 96) if n == 2 else picture.size).save(folder / f"{n}-{k}.png")
            paths.append(str(folder / f"{n}-{k}.png"))
        text = f"{question.text} Write <think> and </think> first."
        made.append(Request(tuple(paths), text, "<think>" if n % 2 else "", max_new_tokens=24, temperature=0.0))
    return made


@pytest.fixture(scope="module")
def settings(family: Backbone, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the smoke preset: a small world, greedy answers of the tiny model alone."""
    from miniworld.write.__main__ import write_world

    root = tmp_path_factory.mktemp("world")
    found = [
        *(f"data.root={root / 'data'}", f"models.base={policy}", f"policy.box_frame={family.box_frame}"),
        *("world.train_per_source=1", "world.bench_per_benchmark=4", "eval.sampled_rollouts=0"),
        *("eval.max_new_tokens=32", "eval.bootstrap_samples=20"),
    ]
    write_world(load("smoke", "fgrpo", found), root / "runs")
    return found


@pytest.fixture(scope="module")
def server(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`make serve-base`, which gives the server a tokenizer in which the format's tags are plain text."""
    root = tmp_path_factory.mktemp("serve")
    ordered = order(load("smoke", "fgrpo", settings), "base", [], root=root)
    flags, environment = ordered.flags, ordered.environment
    with Server(ordered.model, log=root / "log", flags=flags, environment=environment, timeout_s=LIMIT_S) as running:
        yield running


def ask(sampler: Sampler, requests: Sequence[Request]) -> list[Sequence[Completion]]:
    async def gather() -> list[Sequence[Completion]]:
        try:
            return list(await asyncio.gather(*(sampler.sample(request) for request in requests)))
        finally:
            if isinstance(sampler, OpenAISampler):
                await sampler.close()

    return asyncio.run(gather())


def test_greedy_float32_token_for_token(family: Backbone, policy: Path, server: Server, asked: list[Request]) -> None:
    local = TransformersSampler.load(policy)
    remote = OpenAISampler([server.url], str(policy), tokenizer=str(policy))
    worst, count = 0.0, 0
    for request, (ours,), (theirs,) in zip(asked, ask(local, asked), ask(remote, asked), strict=True):
        assert theirs.token_ids == ours.token_ids, request
        assert (theirs.text, theirs.finish) == (ours.text, ours.finish)
        worst = max([worst, *(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True))])
        count += len(ours.token_ids)
    print(f"{family.model_type}: {count} tokens equal, largest difference of log-probabilities {worst:.1e}")
    assert worst < LOGPROB_TOLERANCE and count > 60


def test_bounds_of_an_image_reach_the_server(
    family: Backbone, policy: Path, server: Server, asked: list[Request]
) -> None:
    """`policy.pixels` with each request: the tokens of the in-process engine, of fewer prompt tokens than without."""
    cell = family.pixels.factor**2
    bounds = PixelBounds(4 * cell, 9 * cell, family.pixels.factor)
    local = TransformersSampler.load(policy, pixels=bounds)
    remote = OpenAISampler([server.url], str(policy), tokenizer=str(policy), pixels=bounds)
    plain = OpenAISampler([server.url], str(policy), tokenizer=str(policy))
    for request, (ours,), (theirs,), (whole,) in zip(
        asked, ask(local, asked), ask(remote, asked), ask(plain, asked), strict=True
    ):
        assert theirs.token_ids == ours.token_ids, request
        assert theirs.prompt_tokens <= whole.prompt_tokens - 7 * len(request.images), "16 tokens of an image, and 9"


def test_what_may_not_be_sampled_is_not(policy: Path, server: Server, asked: list[Request]) -> None:
    remote = OpenAISampler([server.url], str(policy), tokenizer=str(policy))
    hot = [replace(request, temperature=2.0, n=8, seed=0) for request in asked]
    seen = {token for answers in ask(remote, hot) for completion in answers for token in completion.token_ids}
    assert len(seen) > 100 and not seen & set(tokens.forbidden_token_ids(str(policy)))


def test_a_server_with_untrained_tags_is_refused(policy: Path, asked: list[Request], tmp_path: Path) -> None:
    """Served as its folder is, the prompt's `<think>` is a token that the checkpoint never learned."""
    if not tokens.untrained_ids(str(policy)):
        pytest.skip("the family's checkpoints know their tags")
    with Server(str(policy), log=tmp_path / "log", flags=CPU_FLAGS, timeout_s=LIMIT_S) as plain:
        remote = OpenAISampler([plain.url], str(policy), tokenizer=str(policy))
        with pytest.raises(UserError, match="reads a tag of the answer format as one token"):
            ask(remote, asked[:1])


def test_evaluation_is_the_same_on_three_engines(settings: list[str], server: Server, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    local = run.evaluate(load("smoke", "fgrpo", settings), "backbone-cot", BENCHMARKS, tmp_path / "local")
    more = ["eval.engine=openai", f"engine.endpoints={json.dumps([server.url])}"]
    same(
        local, run.evaluate(load("smoke", "fgrpo", [*settings, *more]), "backbone-cot", BENCHMARKS, tmp_path / "remote")
    )
    command = [str(PYTHON), str(HERE / "offline.py"), str(tmp_path / "offline"), "backbone-cot", ",".join(BENCHMARKS)]
    environment = {**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *settings, "eval.engine=vllm"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["engine"] == "VLLMSampler" and found["forbidden"] == []
    same(local, Path(found["folder"]))
    assert len(list(read_jsonl(local / "scores.jsonl"))) == 4 * len(BENCHMARKS)


def test_fgrpo_behind_a_server(family: Backbone, policy: Path, tmp_path: Path) -> None:
    """Weights and log-probabilities are the trainer's after each sync, as for the default family; with adapters too."""
    final = world_of(tmp_path) / "sft" / "final"
    shutil.copytree(policy, final)
    loading.load_processor(policy).save_pretrained(final)  # as SFT saves it
    second_root(tmp_path)
    with rollout_server(tmp_path) as server:
        more = (f"policy.box_frame={family.box_frame}", "rl.learning_rate=2.0e-4")
        process = started(tmp_path, "vllm-server", f"rl.vllm.server={server.url}", *more)
        assert process.stdout is not None
        while "waiting" not in (line := process.stdout.readline()):
            assert line, "the run ended before it was done"
    report = finished(process, "\n")
    check_run(report, STEPS)
    # a tiny model's first groups may be all alike, and then nothing is learnt before the second sync
    first = next(iter(read_jsonl(tmp_path / "lora" / "mini" / "rl-fgrpo" / "metrics.jsonl")))
    check_run(report["lora"], 2, learned=first["grad_norm"] > 0)
    for file, steps in ((tmp_path, STEPS), (tmp_path / "lora", 2)):
        metrics = file / "mini" / "rl-fgrpo" / "metrics.jsonl"
        check_metrics(metrics, steps)
        print(family.model_type, [line["sampling/sampling_logp_difference/mean"] for line in read_jsonl(metrics)])
