"""Light modules import without torch, and a finished training stage ends before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.runs import Run, folder

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TORCH = "import sys; {code}; assert 'torch' not in sys.modules, 'torch was imported'"


def run(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", WITHOUT_TORCH.format(code=code)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        *("fgrpo", "fgrpo.config", "fgrpo.inference", "fgrpo.inference.serve", "fgrpo.training.launch"),
        *("data_curation.run", "eval.figures", "eval.run", "eval.tables", "mcts.run", "miniworld.write.__main__"),
        *("judges", "mcts.linearize", "mcts.search", "miniworld.oracle", "rewards.task"),
        *("ops.doctor", "ops.lab.__main__", "ops.paper.__main__", "ops.plan", "ops.slurm"),
    ],
)
def test_imports_without_torch(module: str) -> None:
    done = run(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_the_names_of_a_script_are_loaded_on_first_use() -> None:
    code = "import fgrpo, sys; assert 'FaithfulGRPOTrainer' in dir(fgrpo) and not hasattr(fgrpo, 'Trainer')"
    assert run(code).returncode == 0
    heavy = "from fgrpo import Constraint, DualAscent, FaithfulGRPOTrainer, ScoreColumn; import rl.trainer, trl"
    same = "assert FaithfulGRPOTrainer is rl.trainer.FaithfulGRPOTrainer and issubclass(FaithfulGRPOTrainer, trl.GRPOTrainer)"
    done = subprocess.run(
        [sys.executable, "-c", f"{heavy}; {same}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("module", "stage"), [("sft.train", "sft"), ("rl.train", "rl-grpo-t")])
def test_a_finished_training_stage_ends_before_torch(tmp_path: Path, module: str, stage: str) -> None:
    config = load("mini", "grpo-t")
    inputs = {"sft": ["mcts/sft.jsonl"], "rl-grpo-t": ["data/rl.jsonl", "sft/final"]}[stage]
    files = [folder(config, name, tmp_path) for name in inputs]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content\n")
    with Run.open(config, stage, files, root=tmp_path) as stage_run:
        (stage_run.path / "metrics.jsonl").write_text("{}\n")
        stage_run.finish(["metrics.jsonl"])
    words = [module, "--preset", "mini", "--method", "grpo-t", "--runs", str(tmp_path)]
    done = run(f"from fgrpo.training import launch; launch.main({words!r})")
    assert done.returncode == 0 and f"mini/{stage} is done already" in done.stdout, done.stderr
