"""Eq. 6 inside the real trainer when a batch is split over two processes (gloo), masked rows included: ours, and TRL's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.advantage import combine
from rl.dual import Constraint, DualAscent
from tests.rl.conftest import ROOT

RANKS = 2
GENEROUS = 900  # seconds; a loaded machine


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def seen(world: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw, from one start of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    common = {**os.environ, "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.rl.two_processes", str(world), str(policy), str(folder)]
    logs = [(folder / f"{rank}.log").open("w") for rank in range(RANKS)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=logs[r], stderr=subprocess.STDOUT)
        for r in range(RANKS)
    ]  # fmt: skip
    try:
        codes = [process.wait(GENEROUS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    assert codes == [0] * RANKS, "\n".join((folder / f"{r}.log").read_text()[-3000:] for r in range(RANKS))
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize(("name", "options"), [("plain", {}), ("token", {"whiten": "token", "masked": "zero"})])
def test_advantages_over_two_processes_are_eq_6(seen: list[dict[str, Any]], name: str, options: dict[str, str]) -> None:
    """What each rank trains on, put together, is the pure function of the gathered scores, within 1e-6."""
    runs = [rank[name] for rank in seen]
    assert [run["world"] for run in runs] == [RANKS] * RANKS
    assert len(runs[0]["seen"]) == 3
    masked = unknown = 0
    for mine, other in zip(*(run["seen"] for run in runs), strict=True):
        scores, weights, *_ = mine
        assert torch.equal(scores, other[0]) or torch.equal(scores.nan_to_num(-1), other[0].nan_to_num(-1))
        adv, lengths = (torch.cat([mine[i], other[i]]) for i in (2, 3))
        assert len(adv) == len(scores) == 8
        expected = combine(scores, weights, 4, **options, **({"lengths_N": lengths} if name == "token" else {}))
        assert torch.allclose(adv, expected, atol=1e-6)
        if name == "plain":  # the alarm for TRL upgrades
            assert torch.allclose(torch.cat([mine[4], other[4]]), expected, atol=1e-6)
        assert adv.abs().max() > 0.1
        masked += int(torch.isnan(scores).sum())
        unknown += int(torch.isnan(scores).all(dim=1).sum())
    assert masked > 10 and unknown > 0


def test_multipliers_and_weights_are_one_on_both_processes(seen: list[dict[str, Any]]) -> None:
    """λ moves by the gathered scores; and equals one process' replay of them."""
    for name in ("plain", "token"):
        one, two = (rank[name] for rank in seen)
        assert one["dual"] == two["dual"]
        assert torch.equal(one["weights"], two["weights"])
        replay = DualAscent([Constraint(**given) for given in one["dual"]["constraints"]])
        for scores, weights, *_ in one["seen"]:
            assert weights.tolist() == pytest.approx(replay.weights())
            replay.step(scores[:, 1:])
        assert replay.state_dict() == one["dual"]
        assert replay.lam != {"one": 1.0, "two": 2.0}


def test_every_process_refuses_rows_of_which_only_one_has_images(seen: list[dict[str, Any]]) -> None:
    """Rank 0 has images and rank 1 has none: neither waits for the other."""
    for rank in seen:
        assert rank["refused"].startswith("the generation batch of step 4 has rows with and without images")
