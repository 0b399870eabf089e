"""An evaluation belongs to the content of its model and benchmarks; where they are does not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval import run, tables
from fgrpo import recorded
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.runs import Run
from fgrpo.schema import Config
from tests.eval.test_chain import checkpoint, engine

PARTS = ["mmvp", "sat_real"]


def moved(config: Config, root: Path) -> Config:
    """The configuration with another data root."""
    return config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})


def test_moved_model_and_data_are_the_same_evaluation(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", PARTS, tmp_path, engine(world))
    stage = tmp_path / world.preset / "rl-fgrpo"
    stage.rename(tmp_path / "elsewhere")
    stage.symlink_to(tmp_path / "elsewhere")
    shutil.copytree(world.data.root, tmp_path / "data")
    (stage / "final" / "training_args.bin").write_text("other times and paths")
    silent = engine(world)
    run.evaluate(moved(world, tmp_path / "data"), "fgrpo", PARTS, tmp_path, silent)
    assert not silent.asked and not list((tmp_path / world.preset / "eval").glob(".superseded/*"))


def test_a_changed_benchmark_is_another_evaluation(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    shutil.copytree(world.data.root, tmp_path / "data")
    (tmp_path / "data" / recorded.LIST).unlink()  # of the miniature world's stage: these are the user's own data
    config = moved(world, tmp_path / "data")
    folder = run.evaluate(config, "fgrpo", ["mmvp"], tmp_path, engine(world))
    file = next(p for p in sorted((tmp_path / "data" / "bench").rglob("*.csv")) if "MMVP" in str(p))
    file.write_text(file.read_text().rstrip("\n") + "\n\n")
    more = engine(world)
    run.evaluate(config, "fgrpo", ["mmvp"], tmp_path, more)
    assert more.asked and (folder.parent / ".superseded" / "eval-fgrpo.0").is_dir()
    (folder / "done").unlink()
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"holds unfinished work and belongs to another experiment: content of mmvp: "):
        run.evaluate(config, "fgrpo", ["mmvp"], tmp_path, engine(world))


def test_a_kill_while_a_benchmark_is_added_loses_nothing(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    before = len(list(read_jsonl(folder / "generations.jsonl")))
    with pytest.raises(BaseExceptionGroup):
        run.evaluate(world, "fgrpo", ["sat_real"], tmp_path, engine(world, die_after=3))
    again = engine(world)
    run.evaluate(world, "fgrpo", ["sat_real"], tmp_path, again)
    total = len(list(read_jsonl(folder / "generations.jsonl")))
    assert len(again.asked) == total - before - 3
    assert {r["benchmark"] for r in read_jsonl(folder / "scores.jsonl")} == {"mmvp", "sat_real"}


def test_an_empty_manifest_heals(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    before = json.loads((folder / "manifest.json").read_text())["outputs"]
    (folder / "manifest.json").write_text("")
    silent = engine(world)
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, silent)
    assert not silent.asked and json.loads((folder / "manifest.json").read_text())["outputs"] == before


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_scoring_file_is_named_and_no_verdict_is_paid_again(
    world: Config, tmp_path: Path, content: str
) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    verdicts = (folder / "verdicts.jsonl").read_bytes()
    (folder / "scoring.json").write_text(content)
    with pytest.raises(UserError, match=r"scoring\.json is empty or damaged, so it is unknown which judge"):
        run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    assert (folder / "verdicts.jsonl").read_bytes() == verdicts


@pytest.mark.parametrize("name", ["scores.jsonl", "generations.jsonl", "summary.json", "questions.jsonl"])
def test_tables_refuse_a_flipped_byte(world: Config, tmp_path: Path, name: str) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{name} is not what its finished stage wrote"):
        tables.build(world, tmp_path)


def test_a_damaged_model_is_named_before_an_answer(world: Config, tmp_path: Path) -> None:
    with Run.open(world, "rl-fgrpo", root=tmp_path) as stage:
        checkpoint(world, tmp_path, "rl-fgrpo")
        stage.finish(["final"])
    (stage.path / "final" / "config.json").write_text('{"stage": "rl-fgrpO"}')
    silent = engine(world)
    with pytest.raises(UserError, match=r"config\.json is not what its finished stage wrote: .*make rl-fgrpo"):
        run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, silent)
    assert not silent.asked
