"""The paper's layout in small: SFT under ZeRO-3, its model served by vLLM, FGRPO under ZeRO-3 on that server's rollouts.

Two processes (gloo) throughout; after each weight sync the server's tensors are the trainer's to the bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from safetensors.torch import load_file

from fgrpo.policy import loading
from tests.distributed.conftest import Small, small
from tests.vllm.test_rollouts import (
    HERE,
    LIMIT_S,
    PYTHON,
    ROOT,
    STEPS,
    check_metrics,
    check_run,
    rollout_server,
    second_root,
)
from tests.vllm.weight_reader import differences

__all__ = ["small"]
ZERO3 = "configs/deepspeed/zero3.json"
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def ran(command: list[str], log: Path) -> str:
    """What the command printed; its words go to `log`."""
    with log.open("w") as out:
        code = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}, cwd=ROOT, timeout=LIMIT_S,
            check=False,
        ).returncode  # fmt: skip
    said = log.read_text()
    assert code == 0, said[-6000:]
    return said


@pytest.fixture(scope="module")
def trained(small: Small) -> Path:
    """A runs root in which SFT is done, by two processes under ZeRO-3."""
    root = small.root("zero3")
    settings = small.sft("launch.sft_processes=2", f"sft.deepspeed={ZERO3}", "sft.learning_rate=0.001")
    ran(
        [sys.executable, "-m", "fgrpo.training.launch", "sft.train", "--runs", str(root), "--set", *settings],
        root / "sft.log",
    )
    return root


def served_weights(url: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """What the server computes with once it has loaded the weights in `folder`."""
    base = url.removesuffix("/v1")
    for method, how in (
        ("reload_weights", {"kwargs": {"weights_path": str(folder)}}),
        ("write_weights", {"args": [str(scratch)]}),
    ):
        requests.post(f"{base}/collective_rpc", json={"method": method, **how}, timeout=LIMIT_S).raise_for_status()
    return load_file(scratch)


def test_from_sft_to_a_served_policy(small: Small, trained: Path, tmp_path: Path) -> None:
    second_root(trained)
    settings = small.rl(
        f"rl.deepspeed={ZERO3}", "rl.rollout_engine=vllm-server", "rl.micro_batch=4", "rl.learning_rate=0.001",
        "rl.save_steps=4", f"rl.max_steps={STEPS}", "seed=7",
    )  # fmt: skip
    torchrun = [str(PYTHON), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with rollout_server(trained) as server:
        given = [str(trained), str(tmp_path), *settings, f"rl.vllm.server={server.url}"]
        said = ran([*torchrun, str(HERE / "rollouts.py"), *given], tmp_path / "rl.log")
        report = json.loads(next(line for line in said.splitlines() if line.startswith('{"syncs"')))
        for name, stage in (("SFT", "sft"), ("FGRPO", "rl-fgrpo")):
            folder = trained / "mini" / stage / "final"
            policy = dict(loading.load_policy(folder)[0].named_parameters())
            served = served_weights(server.url, folder, tmp_path / "served")
            assert len(served) > 60 and differences(served, policy) == [], name
    for checkpoint in (
        trained / "mini" / "sft" / "checkpoints" / "checkpoint-4",
        trained / "mini" / "rl-fgrpo" / "checkpoints" / f"checkpoint-{STEPS}",
        trained / "lora" / "mini" / "rl-fgrpo" / "checkpoints" / "checkpoint-2",
    ):
        assert json.loads((checkpoint / "processes.json").read_text()) == {"processes": 2, "zero": 3}
        assert len(list(checkpoint.glob("global_step*/*optim_states.pt"))) == 2
    print({key: value for key, value in report.items() if key != "lora"})
    check_run(report, STEPS)
    check_metrics(trained / "mini" / "rl-fgrpo" / "metrics.jsonl", STEPS)
    check_run(report["lora"], 2)
    check_metrics(trained / "lora" / "mini" / "rl-fgrpo" / "metrics.jsonl", 2)
