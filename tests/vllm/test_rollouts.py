"""FGRPO with rollouts by the real vLLM on CPU, colocated and behind a server: on the policy, to the bit, or refused."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fgrpo.config import load
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.serve import order
from fgrpo.inference.vllm_server import ROOT, Server
from fgrpo.types import Box, Sample
from miniworld import questions, truth
from miniworld.render import render
from rl.preflight import TOLERANCE

HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
STEPS = 4
LIMIT_S = 1500.0
ROUNDING = 0.01  # of a mean ratio: TRL averages per process before it averages over processes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs root with questions, and the backbone as what SFT left."""
    folder = tmp_path_factory.mktemp("rollouts")
    shutil.copytree("miniworld/backbone", world_of(folder) / "sft" / "final")
    return folder


def world_of(folder: Path) -> Path:
    """A dozen questions on one and two pictures in a runs root; returns its preset's folder."""
    world, data = folder / "world", folder / "mini" / "data"
    world.mkdir()
    rng, rows, scenes = random.Random(3), [], []
    for n in range(12):
        question, paths = questions.make(("hrel", "view", "depth")[n % 3], rng), []
        for k, scene in enumerate(question.scenes):
            paths.append(str(world / f"{n}-{k}.png"))
            render(scene, rng).save(paths[-1])
            scenes.append({"key": truth.image_key(paths[-1]), "scene": scene.to_dict()})
        things = [question.scenes[-1].by_name(name) for name in question.targets]
        boxes = tuple(Box(*map(float, thing.box)) for thing in things if thing)
        sample = Sample(f"vgr/train/{n}", tuple(paths), question.text, question.choices, question.answer, boxes)
        rows.append(sample.to_dict())
    data.mkdir(parents=True)
    write_jsonl(data / "rl.jsonl", rows)
    write_jsonl(world / "scenes.jsonl", scenes)
    return folder / "mini"


def started(root: Path, engine: str, *overrides: str) -> subprocess.Popen[str]:
    """tests/vllm/rollouts.py in vLLM's environment."""
    small = (
        f"data.root={root / 'world'}", "data.boxes_from=[vgr]", "seed=7", f"rl.rollout_engine={engine}", f"rl.max_steps={STEPS}",
        "rl.rollout_batch=3", "rl.global_batch=3", "rl.group_size=4", "rl.micro_batch=12", "rl.max_response_length=48",
        "rl.learning_rate=1.0e-3", "rl.save_steps=4", "rl.dual.min_applicable=1",
    )  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return subprocess.Popen(
        [str(PYTHON), str(HERE / "rollouts.py"), str(root), str(root), *small, *overrides],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finished(process: subprocess.Popen[str], say: str = "") -> dict[str, Any]:
    out, _ = process.communicate(say, timeout=LIMIT_S)
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    print(report)
    return report


def rollout_server(root: Path) -> Server:
    """`make serve-rollouts` for what SFT left, which can also tell its weights."""
    ordered = order(load("mini"), "rollouts", [], str(root / "mini" / "sft" / "final"))
    return Server(
        ordered.model,
        log=root / "server.log",
        flags=(*ordered.flags, "--worker-extension-cls", "reading_extension.Reader"),
        environment={**ordered.environment, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])},
        timeout_s=LIMIT_S,
    )


def second_root(root: Path) -> None:
    """A runs root below `root` whose data and policy are the same."""
    below = root / "lora" / "mini"
    below.mkdir(parents=True)
    for name in ("data", "sft"):
        (below / name).symlink_to(root / "mini" / name)


def check_run(report: dict[str, Any], steps: int, learned: bool = True) -> None:
    """A sync before each generation (and the preflight's), after which the engine's tensors are the trainer's to the bit."""
    assert len(report["syncs"]) >= steps
    assert all(sync["wrong"] == [] and sync["tensors"] > 60 for sync in report["syncs"])
    assert report["syncs"][0]["moved"] == 0 and (report["syncs"][-1]["moved"] > 0) == learned
    assert report["frozen"] > 0 and report["frozen_moved"] == report["saved_otherwise"] == []


def check_metrics(path: Path, steps: int) -> None:
    """Engine and trainer agree per token; what is left has one sign, since it is the mass of what may not be sampled.

    The engine's log-probabilities are those among the allowed tokens, hence never below the trainer's: a sequence's ratio is at
    most 1 and, by Jensen's inequality, its mean at least exp(-difference per token × mean length).
    """
    lines = list(read_jsonl(path))
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        difference = line["sampling/sampling_logp_difference/mean"]
        assert 0 <= difference < TOLERANCE["fp32"]
        lowest = math.exp(-difference * line["completions/mean_length"])
        assert lowest - ROUNDING < line["sampling/importance_sampling_ratio/mean"] < 1 + ROUNDING
        assert line["step"] == 1 or line["seconds/sync"] > 0  # the preflight's probe has synced before the first


def test_colocated(root: Path) -> None:
    shutil.rmtree(root / "mini" / "rl-fgrpo", ignore_errors=True)
    report = finished(started(root, "vllm-colocate"))
    check_run(report, STEPS)
    check_metrics(root / "mini" / "rl-fgrpo" / "metrics.jsonl", STEPS)
    assert report["seed"] == 7  # vLLM alone would have left its own
    for pictures, counts in report["image_tokens"].items():
        assert counts["guarded"] == counts["trainer"] > 0, pictures
        assert counts["unguarded"] > counts["trainer"], "TRL no longer doubles image tokens: the guard may go"
    assert report["right"] < 1e-3 < 10 * report["right"] < report["doubled"]
    assert report["fresh"] < 1e-3 < report["stale"], "TRL's sync drops old features now: the guard may go"


def test_behind_a_server(root: Path) -> None:
    shutil.rmtree(root / "mini" / "rl-fgrpo", ignore_errors=True)
    second_root(root)
    with rollout_server(root) as server:
        process = started(root, "vllm-server", f"rl.vllm.server={server.url}")
        assert process.stdout is not None
        while "waiting" not in (line := process.stdout.readline()):
            assert line, "the run ended before it was done"
    report = finished(process, "\n")
    check_run(report, STEPS)
    check_run(report["lora"], 2)
    check_metrics(root / "mini" / "rl-fgrpo" / "metrics.jsonl", STEPS)
    check_metrics(root / "lora" / "mini" / "rl-fgrpo" / "metrics.jsonl", 2)
    assert "does not answer" in report["gone"] and "resume from the last checkpoint" in report["gone"]
