"""One checkpoint evaluated end to end on three engines: the real vLLM server, vLLM without a server, transformers.

Greedy, in float32, over the miniature world's benchmarks: every file of the three evaluations is the same to the byte, so
the scores, intervals and tables are too.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import run
from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT, Server, executable

ROOT = Path(__file__).resolve().parents[2]
MODEL, BENCHMARKS = "backbone-cot", ("cvb_2d", "mindcube", "mmvp", "omnispatial")
FILES = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the smoke preset: a small world, greedy answers alone."""
    from miniworld.write.__main__ import write_world

    root = tmp_path_factory.mktemp("world")
    found = [
        f"data.root={root / 'data'}",
        "world.train_per_source=1",
        "world.bench_per_benchmark=6",
        "eval.sampled_rollouts=0",
        "eval.max_new_tokens=64",
        "eval.bootstrap_samples=50",
    ]
    write_world(load("smoke", "fgrpo", found), root / "runs")
    return found


@pytest.fixture(scope="module")
def local(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return run.evaluate(load("smoke", "fgrpo", settings), MODEL, BENCHMARKS, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def offline(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/vllm/offline.py found, run by vLLM's own interpreter."""
    command = [str(executable().with_name("python")), str(Path(__file__).with_name("offline.py"))]
    command += [str(tmp_path_factory.mktemp("offline")), MODEL, ",".join(BENCHMARKS), *settings, "eval.engine=vllm"]
    environment = {**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_server_gives_what_transformers_gives(
    server: Server, settings: list[str], local: Path, tmp_path: Path
) -> None:
    more = ["eval.engine=openai", f"engine.endpoints={json.dumps([server.url])}"]
    remote = run.evaluate(load("smoke", "fgrpo", [*settings, *more]), MODEL, BENCHMARKS, tmp_path)
    same(local, remote)
    held = list(read_jsonl(remote / "scores.jsonl"))
    assert len(held) == 6 * len(BENCHMARKS) and all(row["meta"]["finish"] != "error" for row in held)
    assert any(row["scores"]["accuracy"]["value"] == 1.0 for row in held)


def test_vllm_without_a_server_gives_the_same(offline: dict[str, Any], local: Path) -> None:
    assert offline["engine"] == "VLLMSampler"
    same(local, Path(offline["folder"]))


def test_the_engine_never_samples_a_picture_token(offline: dict[str, Any]) -> None:
    assert offline["sampled"] > 100 and offline["forbidden"] == []
    assert offline["seeds repeat"] and offline["logprobs"]


def test_what_it_cannot_serve_is_a_refusal_in_words(offline: dict[str, Any]) -> None:
    assert "context" in offline["too long"] or "longer than" in offline["too long"], offline["too long"]
    assert "8" in offline["too many pictures"], offline["too many pictures"]
    assert "the image nowhere.png is missing" in offline["no picture there"]


def test_without_vllm_the_engine_says_where_to_get_it(settings: list[str]) -> None:
    """This interpreter has none."""
    from fgrpo import inference
    from fgrpo.errors import UserError

    with pytest.raises(UserError, match=r"this interpreter has no vLLM .*make setup-vllm"):
        inference.build(load("smoke", "fgrpo", [*settings, "engine.kind=vllm"]), "miniworld/backbone")
