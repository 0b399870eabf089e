"""Stages on several machines: merged shards have the bytes of an undivided run, whatever happens to a shard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from datasets import Dataset

from data_curation import run as data_stage
from eval import miniworld_truth
from eval import run as eval_stage
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_ids
from fgrpo.inference.base import Request
from fgrpo.runs import Run
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed
from fgrpo.shards import Shard, stage
from mcts.run import OUTPUTS, distil, grow_shards
from miniworld.write.__main__ import write_world
from tests.data_curation.test_run import COUNTS
from tests.data_curation.test_run import Scripted as Measured
from tests.eval.scripted import Scripted as Answering
from tests.mcts.scripted import ScriptedEngine
from tests.mcts.test_run import CONFIG, contents, seeded

THREE = [Shard(i, 3) for i in (1, 2, 3)]


@pytest.mark.parametrize(("index", "count"), [(1, 1), (1, 3), (3, 3), (7, 8)])
def test_items_are_split_as_datasets_splits_them(index: int, count: int) -> None:
    items = [f"item {n}" for n in range(13)]
    expected = Dataset.from_dict({"x": items}).shard(count, index - 1, contiguous=False)["x"]
    assert Shard.parse(f"{index}/{count}").take(items) == list(expected)


@pytest.mark.parametrize("text", ["0/8", "9/8", "8", "1/0", "a/b", "-1/2"])
def test_a_bad_shard_says_how_to_write_it(text: str) -> None:
    with pytest.raises(UserError, match="write 1/8 for the first of eight"):
        Shard.parse(text)


def test_shards_have_separate_folders() -> None:
    assert stage("mcts", None) == "mcts"
    assert stage("mcts", Shard(3, 8)) == "mcts-parts/3-of-8"
    assert stage("eval/fgrpo", Shard(3, 8)) == "eval-parts/fgrpo/3-of-8"


def test_trees_of_three_machines_equal_those_of_one(tmp_path: Path) -> None:
    undivided = contents(distil(CONFIG, seeded(tmp_path, 11), ScriptedEngine()))
    runs = seeded(tmp_path / "parts", 11)
    requested = 0
    for shard in THREE:
        engine = ScriptedEngine()
        distil(CONFIG, runs, engine, shard)
        requested += len(engine.requests)
        again = ScriptedEngine()
        distil(CONFIG, runs, again, shard)
        assert not again.requests, "a finished shard is not repeated"
    merging = ScriptedEngine()
    merged = contents(distil(CONFIG, runs, merging))
    assert not merging.requests and requested
    parts = str(tmp_path / "parts").encode()
    assert {name: data.replace(parts, str(tmp_path).encode()) for name, data in merged.items()} == undivided
    assert set(undivided) == set(OUTPUTS)


def test_parallel_shards_grow_only_missing_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--jobs 2`: trees of another number of shards are reused, and the files equal those of an undivided run."""
    undivided = contents(distil(CONFIG, seeded(tmp_path, 11), ScriptedEngine()))
    runs = seeded(tmp_path / "parts", 11)
    distil(CONFIG, runs, ScriptedEngine(), Shard(2, 3))
    requested: dict[str, int] = {}

    def grown(commands: Mapping[str, Sequence[str]], at_once: int) -> list[str]:
        assert at_once == 2 and list(commands) == ["1/2", "2/2"]
        for part, command in commands.items():
            assert command[command.index("--shard") + 1] == part
            engine = ScriptedEngine()
            distil(CONFIG, runs, engine, Shard.parse(part))
            requested[part] = len({request.text for request in engine.requests})
        return []

    monkeypatch.setattr("fgrpo.parallel.run", grown)
    args = argparse.Namespace(preset="smoke", method="fgrpo", runs=str(runs), set=[], jobs=2)
    grow_shards(CONFIG, args)
    assert sum(requested.values()) == 11 - 4, "the four trees of shard 2 of 3 are not grown again"
    for manifest in (runs / "smoke" / "mcts-parts").glob("*/manifest.json"):
        write_sealed(manifest, {**read_sealed(manifest), "seconds": 5.0})
    merging = ScriptedEngine()
    merged = contents(distil(CONFIG, runs, merging))
    assert not merging.requests
    here, there = str(tmp_path / "parts").encode(), str(tmp_path).encode()
    assert {name: data.replace(here, there) for name, data in merged.items()} == undivided
    assert json.loads((runs / "smoke" / "mcts" / "manifest.json").read_text())["parts_seconds"] == 15.0
    requested.clear()
    grow_shards(CONFIG, args)  # done: nothing is started
    assert not requested
    monkeypatch.setattr("fgrpo.parallel.run", lambda commands, at_once: ["2/2"])
    (runs / "smoke" / "mcts" / "trees.jsonl").unlink()
    for path in (runs / "smoke" / "mcts-parts").glob("*-of-*"):
        (path / "trees.jsonl").unlink()
    with pytest.raises(UserError, match="shard 2/2 of the tree search failed"):
        grow_shards(CONFIG, args)


def test_a_killed_shard_is_completed_by_the_merge(tmp_path: Path) -> None:
    undivided = contents(distil(CONFIG, seeded(tmp_path, 8), ScriptedEngine()))
    runs = seeded(tmp_path / "p", 8)
    distil(CONFIG, runs, ScriptedEngine(), Shard(1, 2))
    folder = runs / "smoke" / "mcts-parts" / "1-of-2"
    data = (folder / "trees.jsonl").read_bytes()
    (folder / "trees.jsonl").write_bytes(data[: len(data) - 30])  # a partly written last line
    for name in ("done", "manifest.json"):  # which a killed stage has not written
        (folder / name).unlink()
    merging = ScriptedEngine()
    merged = distil(CONFIG, runs, merging)
    assert 0 < len({request.text for request in merging.requests}) == 5, "the second shard, and the torn tree"
    got = (merged / "traces.jsonl").read_bytes().replace(str(tmp_path / "p").encode(), str(tmp_path).encode())
    assert got == undivided["traces.jsonl"]


def test_shards_of_another_configuration_or_still_running_are_not_merged(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 4)
    other = load("smoke", overrides=["mcts.trees_in_flight=5", "mcts.simulations=2"])
    distil(other, runs, ScriptedEngine(), Shard(1, 1))
    engine = ScriptedEngine()
    folder = distil(CONFIG, runs, engine)
    assert {request.text for request in engine.requests} and len(read_ids(folder / "trees.jsonl")) == 4
    (folder / "done").unlink()
    distil(CONFIG, runs, ScriptedEngine(), Shard(1, 2))
    seeds = runs / "smoke" / "data" / "seed.jsonl"
    with (
        Run.open(CONFIG, "mcts-parts/1-of-2", [seeds], runs),
        pytest.raises(UserError, match=r"another process is working on .*1-of-2"),
    ):
        distil(CONFIG, runs, ScriptedEngine())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("world")
    sizes = ["world.train_per_source=40", "world.bench_per_benchmark=6", f"data.root={folder / 'root'}"]
    config = load("smoke", "fgrpo", [*sizes, *COUNTS, "eval.benchmarks=[mmvp,sat_real]"])
    write_world(config, folder / "runs")
    return config


def test_difficulty_of_three_machines_equals_that_of_one(world: Config, tmp_path: Path) -> None:
    undivided = data_stage.curate(world, tmp_path / "whole", Measured())
    runs = tmp_path / "parts"
    with pytest.raises(UserError, match=r"First run `python -m data_curation\.run --preset smoke --prepare`"):
        data_stage.measure_shard(world, THREE[0], runs, Measured())
    data_stage.curate(world, runs, Measured(dies_after=0), prepare_only=True)
    engines = [Measured() for _ in THREE]
    for shard, engine in zip(THREE, engines, strict=True):
        data_stage.measure_shard(world, shard, runs, engine)
    merging = Measured()
    merged = data_stage.curate(world, runs, merging)
    for name in data_stage.OUTPUTS:
        text = (merged / name).read_text().replace(str(runs), str(tmp_path / "whole"))
        assert text == (undivided / name).read_text(), name
    everything: list[Request] = [request for engine in (*engines, merging) for request in engine.requests]
    assert len({request.seed for request in everything}) == len(everything), "nothing is rolled out twice"
    assert sum(len(engine.requests) for engine in engines) > 2 * len(merging.requests), "the shards did most of it"


def test_two_processes_curate_what_one_does(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--jobs 2`: two shards, of which neither measures what the stage has; then the files are those of one process."""
    undivided = data_stage.curate(world, tmp_path / "whole", Measured())
    runs = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        data_stage.curate(world, runs, Measured(dies_after=20))
    known = read_ids(runs / "smoke" / "data" / data_stage.DIFFICULTY)
    asked: list[Request] = []

    def measured(commands: Mapping[str, Sequence[str]], at_once: int) -> list[str]:
        assert at_once == 2 and list(commands) == ["1/2", "2/2"]
        for part, command in commands.items():
            assert command[command.index("-m") + 1] == "data_curation.run" and command[-2:] == ["--shard", part]
            engine = Measured()
            data_stage.measure_shard(world, Shard.parse(part), runs, engine)
            asked.extend(engine.requests)
        return []

    monkeypatch.setattr("fgrpo.parallel.run", measured)
    args = argparse.Namespace(preset="smoke", method="fgrpo", runs=str(runs), set=[], jobs=2)
    data_stage.measure_shards(world, args)
    merging = Measured()
    merged = data_stage.curate(world, runs, merging)
    for name in data_stage.OUTPUTS:
        text = (merged / name).read_text().replace(str(runs), str(tmp_path / "whole"))
        assert text == (undivided / name).read_text(), name
    assert known and len({request.seed for request in (*asked, *merging.requests)}) == len(asked) + len(
        merging.requests
    )
    monkeypatch.setattr("fgrpo.parallel.run", lambda commands, at_once: pytest.fail("a finished stage starts nothing"))
    data_stage.measure_shards(world, args)


def test_a_failed_shard_is_named(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgrpo.parallel.run", lambda commands, at_once: ["2/2"])
    args = argparse.Namespace(preset="smoke", method="fgrpo", runs=str(tmp_path), set=[], jobs=2)
    with pytest.raises(UserError, match="shard 2/2 of the difficulty rollouts failed"):
        data_stage.measure_shards(world, args)


def test_answers_of_three_machines_equal_those_of_one(world: Config, tmp_path: Path) -> None:
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    names = ("generations.jsonl", "scores.jsonl", "verdicts.jsonl", "summary.json")
    undivided = eval_stage.evaluate(world, "backbone-cot", root=tmp_path / "whole", sampler=Answering(book))
    for shard in THREE:
        eval_stage.evaluate(world, "backbone-cot", root=tmp_path, sampler=Answering(book), shard=shard)
    merging = Answering(book)
    merged = eval_stage.evaluate(world, "backbone-cot", root=tmp_path, sampler=merging)
    assert not merging.asked
    assert {name: (merged / name).read_bytes() for name in names} == {n: (undivided / n).read_bytes() for n in names}
