"""`make clean-checkpoints` deletes what no later run needs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.runs import Run, is_done
from ops import clean_checkpoints


def stage(root: Path, name: str, *, finished: bool) -> Path:
    with Run.open(load("mini"), name, root=root) as run:
        (run.path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
        (run.path / "checkpoints" / "checkpoint-2" / "w").write_text("12345")
        (run.path / "metrics.jsonl").write_text("{}\n")
        if finished:
            run.finish(["metrics.jsonl"])
        return run.path


def test_only_checkpoints_of_finished_stages_are_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, working = stage(tmp_path, "rl-fgrpo", finished=True), stage(tmp_path, "sft", finished=False)
    old = tmp_path / "mini" / ".superseded" / "rl-fgrpo.0"
    old.mkdir(parents=True)
    (old / "w").write_text("1234567")
    config = load("mini")
    assert clean_checkpoints.clean(config, tmp_path, only_list=True) == {done / "checkpoints": 5}
    assert (done / "checkpoints").exists()
    monkeypatch.setattr("sys.argv", ["clean", "--runs", str(tmp_path)])
    clean_checkpoints.main()
    printed = capsys.readouterr().out
    assert f"freed 0.0 MB: {done / 'checkpoints'}" in printed and f"superseded, 0.0 MB: {old}" in printed
    assert not (done / "checkpoints").exists() and (working / "checkpoints").exists() and (old / "w").exists()
    assert is_done(config, "rl-fgrpo", tmp_path, [])
    assert clean_checkpoints.superseded(config, tmp_path) == {old: 7}


def test_the_start_of_a_finished_anchor_stage_is_deleted(tmp_path: Path) -> None:
    done = stage(tmp_path, "anchor", finished=False)
    for name in ("start", "final"):
        (done / name).mkdir()
        (done / name / "model").write_text("1234567")
    assert clean_checkpoints.clean(load("mini"), tmp_path) == {}, "the stage still starts from it"
    (done / "done").touch()
    assert clean_checkpoints.clean(load("mini"), tmp_path) == {done / "checkpoints": 5, done / "start": 7}
    assert (done / "final").is_dir() and not (done / "start").exists()


def test_linked_checkpoints_are_deleted_with_their_link(tmp_path: Path) -> None:
    done = stage(tmp_path, "rl-fgrpo", finished=True)
    (done / "checkpoints").rename(tmp_path / "disk")
    (done / "checkpoints").symlink_to(tmp_path / "disk")
    assert clean_checkpoints.clean(load("mini"), tmp_path) == {done / "checkpoints": 5}
    assert not (tmp_path / "disk").exists() and not (done / "checkpoints").is_symlink()


def test_a_stage_that_is_extended_in_the_meantime_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stage(tmp_path, "rl-fgrpo", finished=True)

    @contextmanager
    def held(path: Path) -> Iterator[None]:
        (path / "done").unlink()  # the other process opened the run before we held its lock
        yield

    monkeypatch.setattr(clean_checkpoints, "held", held)
    assert clean_checkpoints.clean(load("mini"), tmp_path) == {}
    assert (done / "checkpoints" / "checkpoint-2").is_dir()
