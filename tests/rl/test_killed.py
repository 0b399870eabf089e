"""SIGKILL in the middle of a step, then the same command: weights, λ, metrics and rollouts of the undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fgrpo.files import read_jsonl
from rl import train
from rl.trainer import DUALS, resume_point
from tests.rl.conftest import ROOT, mini
from tests.rl.killed import OVERRIDES

PLACES = (
    "between two backward passes",
    "while a checkpoint is written",
    "while the final model is written",
    "between the final model and done",
    "between rollouts and their checkpoint",
    "before an old checkpoint is deleted",
)


@pytest.fixture(scope="module")
def roots(world: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A runs folder for each case, in which the earlier stages are there."""
    made = {}
    for name in ("undisturbed", *PLACES):
        root = tmp_path_factory.mktemp("runs")
        for stage, source in (("data/rl.jsonl", world / "rl.jsonl"), ("sft/final", policy)):
            target = root / "mini" / stage
            target.parent.mkdir(parents=True)
            target.symlink_to(source)
        made[name] = root
    train.train(mini(world, *OVERRIDES), made["undisturbed"])
    return made


def what_is_left(root: Path) -> dict[str, Any]:
    """Everything a run leaves, but seconds and where it lies."""
    folder = root / "mini" / "rl-fgrpo"
    checkpoint = resume_point(folder / "checkpoints")
    assert checkpoint is not None
    return {
        "final": {
            p.name: p.read_bytes() for p in sorted((folder / "final").iterdir()) if p.name != "training_args.bin"
        },
        "checkpoints": sorted(p.name for p in (folder / "checkpoints").iterdir()),
        "left over": list(folder.rglob("*.part")),
        "optimizer": (checkpoint / "optimizer.pt").read_bytes(),
        "duals": json.loads((checkpoint / DUALS).read_text()),
        "metrics": [
            {k: v for k, v in x.items() if not k.startswith("seconds/")} for x in read_jsonl(folder / "metrics.jsonl")
        ],
        "rollouts": {p.name: pq.read_table(p) for p in sorted((folder / "rollouts").iterdir())},
    }


@pytest.mark.parametrize("place", PLACES)
def test_killed_and_gone_on_with_equals_undisturbed(roots: dict[str, Path], world: Path, place: str) -> None:
    command = [sys.executable, "-m", "tests.rl.killed", str(roots[place]), str(world), place]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    train.train(mini(world, *OVERRIDES), roots[place])
    left, whole = what_is_left(roots[place]), what_is_left(roots["undisturbed"])
    assert [line["step"] for line in left["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert list(left["rollouts"]) == ["000001.parquet", "000003.parquet", "000005.parquet"]
    for part in whole:
        assert left[part] == whole[part], part
