"""metrics.jsonl and the progress line of a training run, opened on the main process alone and closed at its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgrpo.files import read_jsonl
from fgrpo.training.metrics_callback import MetricsCallback


class Callback(MetricsCallback):
    """Writes step and loss, and shows the loss."""

    def log(self, state: Any, logs: Any) -> None:
        self.add({"step": state.global_step, "loss": logs["loss"]})
        self.show(state.global_step, f"loss {logs['loss']}", [f"message {state.global_step}"])


def state(step: int, is_main: bool = True) -> Any:
    return SimpleNamespace(global_step=step, max_steps=4, log_history=[], is_world_process_zero=is_main)


def begun(folder: Path, at: Any) -> Any:
    folder.mkdir(exist_ok=True)
    callback: Any = Callback(folder)
    callback.on_train_begin(None, at, None)
    return callback


def test_a_line_per_log_entry_and_none_of_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = begun(tmp_path / "sft", state(0))
    for step in (1, 2):
        callback.on_log(None, state(step), None, {"loss": step / 4})
    callback.on_log(None, state(2), None, {"train_runtime": 1.0, "loss": 9.0})
    callback.on_log(None, state(2), None, None)
    callback.on_train_end(None, state(2), None)
    callback.close()
    callback.on_log(None, state(3), None, {"loss": 9.0})  # closed: nothing is written
    assert list(read_jsonl(tmp_path / "sft" / "metrics.jsonl")) == [
        {"step": 1, "loss": 0.25},
        {"step": 2, "loss": 0.5},
    ]
    out, bar = capsys.readouterr()
    assert out == "message 1\nmessage 2\n" and "sft" in bar and "loss 0.5" in bar and "2/4" in bar


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    callback = begun(tmp_path, state(0))
    for step in (1, 2, 3):
        callback.on_log(None, state(step), None, {"loss": 0.0})
    callback.close()
    callback = begun(tmp_path, state(2))
    callback.on_log(None, state(3), None, {"loss": 1.0})
    callback.close()
    assert [(line["step"], line["loss"]) for line in read_jsonl(tmp_path / "metrics.jsonl")] == [(1, 0), (2, 0), (3, 1)]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    callback = begun(tmp_path, state(0, is_main=False))
    callback.on_log(None, state(1, is_main=False), None, {"loss": 0.0})
    callback.show(1, "loss")
    callback.close()
    assert not (tmp_path / "metrics.jsonl").exists()
