"""A small world of traces for SFT, over a copy of the shipped mini policy."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo import config
from fgrpo.files import write_jsonl
from miniworld import questions
from miniworld.render import render
from sft import train

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/mini/mcts/sft.jsonl with sixteen traces of eight questions, one and two images, and a copy of the policy."""
    folder = tmp_path_factory.mktemp("sft")
    shutil.copytree(ROOT / "miniworld" / "backbone", folder / "backbone")
    rng = random.Random(4)
    rows = []
    for n in range(8):
        question = questions.make(("hrel", "view")[n % 2], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            path = folder / f"{n}-{k}.png"
            render(scene, rng).save(path)
            paths.append(str(path))
        for copy in range(2):
            turn = [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": questions.trace(question)},
            ]
            rows.append({"id": f"{n}/{copy}", "sample_id": f"sat/train/{n}", "messages": turn, "images": paths})
    (folder / "runs" / "mini" / "mcts").mkdir(parents=True)
    write_jsonl(folder / "runs" / "mini" / "mcts" / "sft.jsonl", rows)
    return folder


def mini(world: Path, *overrides: str) -> config.Config:
    small = (
        "sft.max_steps=4",
        "sft.batch_size=4",
        "sft.save_steps=2",
        "sft.evals=4",
        "sft.logging_steps=1",
        "data.validation_share=0.3",
    )
    return config.load("mini", "fgrpo", [*small, f"models.base={world / 'backbone'}", *overrides])


def train_to_step_3(
    cfg: Any, root: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[[Any, Path], Any] = train.train
) -> None:
    """Train until ctrl-C at step 3."""
    real = train.LoggingCallback.on_step_end

    def dies(self: train.LoggingCallback, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt
        real(self, args, state, control, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.LoggingCallback, "on_step_end", dies)
        stage(cfg, root)
