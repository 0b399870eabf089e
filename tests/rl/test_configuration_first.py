"""A configuration that cannot run is refused before the folder of a finished run is moved aside for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fgrpo import runs
from fgrpo.errors import UserError
from rl import train
from tests.rl.conftest import mini


@pytest.fixture
def finished(world: Path, tmp_path: Path) -> Path:
    """A finished RL folder of the mini preset; returns the root."""
    cfg = mini(world)
    questions, policy = runs.folder(cfg, "data", tmp_path) / "rl.jsonl", runs.folder(cfg, "sft", tmp_path) / "final"
    for made in (questions, policy / "config.json"):
        made.parent.mkdir(parents=True)
        made.write_text("{}\n")
        (made.parent / "done").touch()
    with runs.Run.open(cfg, "rl-fgrpo", [questions, policy], tmp_path) as run:
        (run.path / "metrics.jsonl").write_text("{}\n")
        run.finish(["metrics.jsonl"])
    return tmp_path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.rollout_engine=vllm-server", "requires vLLM"),
        ("rl.constraints.consistancy={tau: 0.9}", "did you mean 'rl.constraints.consistency'"),
    ],
)
def test_nothing_is_moved(
    override: str, message: str, finished: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "require", lambda path, made_by, check=True: Path(path))
    monkeypatch.setitem(sys.modules, "vllm", None)
    folder = runs.folder(mini(world), "rl-fgrpo", finished)
    with pytest.raises(UserError, match=message):
        train.train(mini(world, override), finished)
    assert (folder / "done").exists() and not (folder.parent / ".superseded").exists()


def test_a_finished_run_needs_no_engine(finished: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "require", lambda path, made_by, check=True: Path(path))
    monkeypatch.setattr(train, "check_configuration", lambda cfg: pytest.fail("checked"))
    assert train.train(mini(world), finished) == runs.folder(mini(world), "rl-fgrpo", finished)
