"""Families besides the default one in two processes (gloo) under ZeRO-3: SFT and FGRPO have the losses of one process, and sample by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fgrpo.files import read_jsonl
from fgrpo.policy import backbone, backbones, loading
from fgrpo.policy.backbone import Backbone
from tests.distributed import worker
from tests.distributed.conftest import GENEROUS, ROOT, Small, small_world

pytestmark = pytest.mark.slow
ZERO3 = "configs/deepspeed/zero3.json"
STEPS = 2
SHORT = (f"sft.max_steps={STEPS}", f"rl.max_steps={STEPS}", "sft.freeze_projector=false")


@dataclass(frozen=True)
class Ran:
    """The small world, in which two processes and one have trained the family's tiny model."""

    small: Small
    family: Backbone

    def metric(self, name: str, stage: str, key: str) -> list[float]:
        file = self.small.root(name) / "mini" / stage / "metrics.jsonl"
        return [line[key] for line in read_jsonl(file) if key in line]


@pytest.fixture(scope="session", params=[name for name in backbone.names() if name != backbones.DEFAULT])
def family(request: pytest.FixtureRequest) -> Backbone:
    """Each family besides the default one, which tests/distributed trains."""
    return backbone.lookup(request.param)


@pytest.fixture(scope="module")
def ran(family: Backbone, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("two")
    small = small_world(folder / "world", policy)
    sft, rl = small.sft(*SHORT), small.rl(*SHORT)
    jobs = [
        {"name": "sft-zero3", "stage": "sft", "set": [*sft, f"sft.deepspeed={ZERO3}"]},
        {"name": "rl-zero3", "stage": "rl", "set": [*rl, "rl.micro_batch=4", f"rl.deepspeed={ZERO3}"]},
        {"name": "rl-real", "stage": "rl", "set": [*rl, "rl.micro_batch=4", f"rl.deepspeed={ZERO3}"], "real": True},
    ]
    todo = [{**job, "root": str(small.root(str(job["name"])))} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps({"jobs": todo, "texts": small.texts}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, *torchrun, "-m", "tests.distributed.worker", str(folder / "jobs.json")],
            stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, timeout=GENEROUS, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log").read_text()[-4000:]
    torch.set_num_threads(1)
    alone = ({"stage": "sft", "set": [*sft, "sft.gradient_accumulation=2"], "root": small.root("sft-alone")},
             {"stage": "rl", "set": [*rl, "rl.micro_batch=8"], "root": small.root("rl-alone")})  # fmt: skip
    for job in alone:
        worker.run(job, small.texts)
    return Ran(small, family)


def test_losses_are_those_of_one_process(ran: Ran) -> None:
    for stage, kind, keys in (
        ("sft", "sft", ("loss", "grad_norm")),
        ("rl", "rl-fgrpo", ("loss", "grad_norm", "reward")),
    ):
        for key in keys:
            one, two = (ran.metric(f"{stage}-{name}", kind, key) for name in ("alone", "zero3"))
            print(f"{ran.family.model_type} {stage} {key}: one process {one}, ZeRO-3 on two {two}")
            assert len(one) == STEPS and two == pytest.approx(one, rel=1e-3, abs=1e-6), (stage, key)


def test_what_is_saved_is_whole_and_only_the_trained_part_moved(ran: Ran) -> None:
    base = load_file(ran.small.folder / "backbone" / "model.safetensors")
    for name, stage in (("sft-zero3", "sft"), ("rl-zero3", "rl-fgrpo"), ("rl-real", "rl-fgrpo")):
        final = ran.small.root(name) / "mini" / stage / "final"
        loading.load_policy(final)
        now = load_file(final / "model.safetensors")
        assert now.keys() == base.keys()
        moved = {key for key in base if not torch.equal(base[key], now[key])}
        vision = {key for key in moved if ran.family.is_vision(key)}
        assert moved - vision
        assert all(map(ran.family.is_projector, vision)) and bool(vision) == (stage == "sft"), name


def test_two_processes_sample_for_themselves(ran: Ran) -> None:
    """TRL's generation under ZeRO-3, images included."""
    folder = ran.small.root("rl-real") / "mini" / "rl-fgrpo"
    rows = pd.concat(pd.read_parquet(file) for file in sorted((folder / "rollouts").glob("*.parquet")))
    assert len(rows) == STEPS * 2 * 4 and rows["text"].nunique() > 8
