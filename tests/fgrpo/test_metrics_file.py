"""metrics.jsonl over kills: truncated on resume, and never silently short."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fgrpo.files import read_jsonl
from fgrpo.training.metrics_file import MetricsFile, restore_lines

HISTORY = [{"step": n, "loss": n / 10} for n in (1, 2, 3, 4)] + [{"step": 4, "train_runtime": 9.0}]


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_jsonl(path)]


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 6)) + '{"step": 6, "los')
    file = MetricsFile(tmp_path, 2, HISTORY[:2])
    file.add({"step": 3, "loss": math.nan})
    file.close()
    file.close()
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": None}]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content", [None, "", '{"step": 1, "loss": 0.5}\n', '{"step": 1, "loss": 0.5}\n{torn\n{"step": 3}\n']
)
def test_lost_lines_are_restored_from_the_checkpoint_and_reported(tmp_path: Path, capsys, content: str | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    MetricsFile(tmp_path, 4, HISTORY).close()
    assert steps(path) == [1, 2, 3, 4]
    loss = next(read_jsonl(path))["loss"]
    assert loss == (0.5 if content else 0.1)  # lines that the file still has win
    assert "lacked the lines of" in capsys.readouterr().err


def test_several_entries_of_one_step_belong_together() -> None:
    """SFT logs loss and validation loss of a step in two lines; a file with one of the two is short."""
    history = [{"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 2.0}]
    assert restore_lines(history[:1], 2, history) == (history, [2])
    assert restore_lines(history, 2, history) == (history, [])
