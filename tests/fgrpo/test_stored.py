"""Checkpoints on disk: damage is named, the one before it is used, and rotation goes by step."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from fgrpo.training import stored
from fgrpo.training.stored import (
    CHECKSUMS,
    STATE,
    WrongCheckpoint,
    last_checkpoint,
    problem_of,
    resume_point,
    rotate,
    steps_in,
    write_checksums,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "duals.json", STATE)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_text(f"{name} {step}")
    write_checksums(path)
    return path


@pytest.mark.parametrize("name", [*FILES, CHECKSUMS])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, name: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    file, data = bad / name, (bad / name).read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": data[:-1], "flipped": bytes([data[0] ^ 1]) + data[1:]}[fault])
    if name == CHECKSUMS and fault == "cut":  # only the last newline is gone
        file.write_bytes(data[:-3])
    assert last_checkpoint(tmp_path, ("duals.json", STATE)) == good
    assert f"{bad} is not used: " in (printed := capsys.readouterr().err) and name in printed


def test_a_file_that_was_never_written_is_missed(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2)
    assert problem_of(path, (STATE, "counters.json")) == "counters.json is missing" and problem_of(path) is None


def test_damaged_checkpoints_alone_are_no_reason_to_start_anew(tmp_path: Path) -> None:
    assert resume_point(tmp_path) is None
    (checkpoint(tmp_path, 2) / "optimizer.pt").unlink()
    with pytest.raises(
        WrongCheckpoint, match=r"no checkpoint of .* is whole .*delete that folder to train from step 0"
    ):
        resume_point(tmp_path)
    assert resume_point(tmp_path, before=2) is None


def test_steps_are_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert list(steps_in(tmp_path)) == [9, 20, 100]
    assert last_checkpoint(tmp_path, before=100) == tmp_path / "checkpoint-20"


def test_rotation_goes_by_step_whatever_the_times(tmp_path: Path) -> None:
    """Copied older checkpoints have later times, and the new one stays."""
    for step in (4, 2, 10, 8):
        path = checkpoint(tmp_path, step)
        os.utime(path, (4e9 - step, 4e9 - step))
    rotate(tmp_path, 10, 2)
    assert list(steps_in(tmp_path)) == [8, 10]
    rotate(tmp_path, 10, None)
    assert list(steps_in(tmp_path)) == [8, 10]


def test_rotation_keeps_the_best_and_what_lies_ahead(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        checkpoint(tmp_path, step)
    shutil.rmtree(tmp_path / "checkpoint-8")
    rotate(tmp_path, 6, 1, tmp_path / ".part" / "checkpoint-2")
    assert list(steps_in(tmp_path)) == [2, 6, 10]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_fault_of_the_machine_is_no_damage(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, 10)

    def fails(self: object, file: Path) -> str:
        raise OSError(code, "the machine")

    monkeypatch.setattr(stored.Hashes, "of_file", fails)
    for read in (problem_of, lambda p: resume_point(p.parent)):
        with pytest.raises(OSError, match="the machine"):
            read(path)
