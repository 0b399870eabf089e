"""The light packages import without torch, and every Make target that names a folder is phony."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "module",
    [
        "fgrpo.config",
        "ops.doctor",
        "ops.plan",
        "fgrpo.inference",
        "fgrpo.inference.serve",
        "ops.slurm",
        "judges",
        "mcts.search",
        "mcts.linearize",
        "miniworld.oracle",
        "rewards.consistency",
        "rewards.semantic_grounding",
        "rewards.task",
    ],
)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_targets_that_are_also_folders_are_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split())  # type: ignore[union-attr]
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert {t for t in targets if (ROOT / t).is_dir()} <= phony
