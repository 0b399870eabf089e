"""Trackers: what a trainer logs arrives at the one that `report_to` names, for SFT and RL alike."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations import integration_utils

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.training import tracking


class Line(torch.nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).pow(2).mean()}


def train(tmp_path: Path, tracker: Any) -> str | None:
    arguments = TrainingArguments(
        str(tmp_path / "checkpoints"), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(Line(), arguments, train_dataset=[{"x": torch.ones(1)}] * 4)
    with tracking.tracked(trainer, tracker, "mini-sft", tmp_path, {"seed": 1}) as run_id:
        trainer.train()
    return run_id


def test_tensorboard_writes_to_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            self.log_dir = log_dir

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((self.log_dir, name))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    assert train(tmp_path, "tensorboard") is None
    assert (str(tmp_path / "tensorboard"), "train/loss") in written


def test_trackio_gets_one_run_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    stub = types.ModuleType("trackio")
    stub.__version__ = "0.1"  # type: ignore[attr-defined]
    space = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
    for name, value in {
        "init": lambda **given: opened.append(given),
        "log": lambda values, **_: logged.append(values),
        "finish": lambda: None,
        "config": type("Config", (dict,), {"update": lambda *_, **__: None})(),
        "context_vars": space,
    }.items():
        setattr(stub, name, value)
    monkeypatch.setitem(sys.modules, "trackio", stub)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    first, second = train(tmp_path, "trackio"), train(tmp_path, "trackio")
    assert first == second == (tmp_path / "trackio_id").read_text().strip()
    assert [run["name"] for run in opened] == [f"mini-sft-{str(first)[:6]}"] * 2
    assert {run["project"] for run in opened} == {"faithful-grpo"}
    assert any("train/loss" in values for values in logged)


def test_none_leaves_nothing(tmp_path: Path) -> None:
    assert train(tmp_path, "none") is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_tracker_that_is_not_installed_is_named_before_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    tracking.check_tracker("none", "sft.report_to")
    with pytest.raises(UserError, match=r"sft\.report_to is trackio.*pip install trackio.*sft\.report_to=none"):
        tracking.check_tracker("trackio", "sft.report_to")


@pytest.mark.parametrize("stage", ["sft", "rl"])
@pytest.mark.parametrize("tracker", ["none", "tensorboard", "trackio", "wandb"])
def test_both_stages_take_every_tracker(stage: str, tracker: str) -> None:
    assert getattr(load("mini", "fgrpo", [f"{stage}.report_to={tracker}"]), stage).report_to == tracker
