"""Whole stages behind an engine and a judge of which three replies in ten are odd: the files are those of a run without faults.

The same for outages: longer than the patience, a stage is not done, says so, and the same command completes it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_curation.run import curate
from eval import run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.schema import Config
from mcts.run import distil
from miniworld.write.__main__ import write_world
from tests.clock import hurry
from tests.mcts.test_run import seeded
from tests.odd_server import KEY, MODEL, OddServer, running

BENCHMARKS = ("mmvp", "cvb_2d", "sat_real", "cvb_3d")
EVAL_FILES = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")


@pytest.fixture
def server() -> Iterator[OddServer]:
    with running() as odd:
        yield odd


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of the miniature world."""
    folder = tmp_path_factory.mktemp("data")
    sizes = ["world.train_per_source=40", "world.bench_per_benchmark=6", f"data.root={folder / 'root'}"]
    write_world(load("smoke", "fgrpo", sizes), folder / "runs")
    return folder / "root"


def config(server: OddServer, name: str, data: Path, *more: str) -> Config:
    """The smoke preset with engine and judges at the server's behaviour `name`."""
    url = server.url(name)
    settings = [f"data.root={data}", "engine.kind=openai", f"engine.model_name={MODEL}", f'engine.endpoints=["{url}"]']
    for role in ("training", "evaluation", "extraction"):
        settings += [f"judges.{role}.{key}" for key in ("backend=openai", f"model={MODEL}", f'endpoints=["{url}"]')]
        settings += [f"judges.{role}.concurrency=16", f"judges.{role}.max_completion_tokens=64"]
    settings += [f"{place}.api_key_env=OPENAI_API_KEY" for place in ("engine", "judges.training", "judges.evaluation")]
    settings += ["judges.extraction.api_key_env=OPENAI_API_KEY", "engine.concurrency=16", "eval.bootstrap_samples=50"]
    for source in ("sat", "vgr", "viscot", "treevgr"):
        settings += [f"data.sources.{source}.rl=16"]
    return load("smoke", "fgrpo", [*settings, *more])


def evaluate(server: OddServer, name: str, data: Path, root: Path, *more: str) -> dict[str, bytes]:
    folder = run.evaluate(config(server, name, data, *more), "backbone-cot", BENCHMARKS, root)
    return contents(folder, root, *EVAL_FILES)


def search(server: OddServer, name: str, data: Path, root: Path, *more: str) -> dict[str, bytes]:
    runs = root / "runs" if root.exists() else seeded(root, 8)
    folder = distil(config(server, name, data, "mcts.trees_in_flight=4", *more), runs)
    return contents(folder, root, "trees.jsonl", "traces.jsonl", "sft.jsonl", "failed.jsonl")


def curated(server: OddServer, name: str, data: Path, root: Path, *more: str) -> dict[str, bytes]:
    folder = curate(config(server, name, data, *more), root)
    return contents(folder, root, "seed.jsonl", "difficulty.jsonl", "rl.jsonl", "dropped.json")


def contents(folder: Path, root: Path, *names: str) -> dict[str, bytes]:
    """The files, without where they are."""
    return {name: (folder / name).read_bytes().replace(str(root).encode(), b"") for name in names}


Stage = Callable[..., dict[str, bytes]]


@pytest.mark.parametrize("stage", [evaluate, search, curated])
def test_thirty_percent_odd_replies_change_no_file(stage: Stage, server: OddServer, data: Path, tmp_path: Path) -> None:
    plain = stage(server, "right", data, tmp_path / "plain")
    assert not server.faults
    requests = sum(server.good.values())
    server.good.clear()
    odd = stage(server, "mixed", data, tmp_path / "odd")
    faults, paid = sum(server.faults.values()), sum(server.good.values())
    zeros, lost = lines_that_differ(plain, odd)
    print(
        f"{stage.__name__}: {requests} requests, {faults} faults of {len(server.faults)} kinds, {zeros} changed, {lost} lost"
    )
    assert faults > 0.3 * requests and len(server.faults) > 20
    assert odd == plain and (zeros, lost) == (0, 0)
    assert paid - requests <= 0.01 * requests, "a good reply was paid for twice"
    assert KEY.encode() not in b"".join(odd.values())


def lines_that_differ(plain: dict[str, bytes], odd: dict[str, bytes]) -> tuple[int, int]:
    """Lines of the plain run that changed, and that are missing."""
    before = [line for content in plain.values() for line in content.splitlines()]
    after = [line for content in odd.values() for line in content.splitlines()]
    return len(set(after) - set(before)), max(0, len(before) - len(after))


@pytest.mark.parametrize("stage", [evaluate, search, curated])
def test_an_outage_longer_than_the_patience_is_no_result(
    stage: Stage, server: OddServer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reply is 502 after a while; the stage is not done, and the same command completes it."""
    plain = stage(server, "right", data, tmp_path / "plain")
    total = sum(server.good.values())
    server.good.clear()
    patience = [
        "engine.patience_s=1",
        *(f"judges.{role}.patience_s=1" for role in ("training", "evaluation", "extraction")),
    ]
    root, respond = tmp_path / "out", server.respond
    monkeypatch.setattr(
        server,
        "respond",
        lambda path, body: respond(
            path.replace("right", "status-502") if sum(server.good.values()) > total // 2 else path, body
        ),
    )
    server.for_good.add("x")
    with pytest.raises(UserError, match="rerun to"):
        stage(server, "right", data, root, *patience)
    assert not list(root.rglob("done"))
    monkeypatch.setattr(server, "respond", respond)
    again = stage(server, "right", data, root, *patience)
    assert again == plain
    assert sum(server.good.values()) - total <= 0.01 * total + 32, "finished work was paid for twice"


def test_kills_while_scoring_repeat_only_calls_in_flight(server: OddServer, data: Path, tmp_path: Path) -> None:
    """SIGKILL twice while verdicts arrive: a reply that arrived is never paid for again, and the files are equal."""
    few = [f"judges.{role}.concurrency=2" for role in ("evaluation", "extraction")]
    plain = evaluate(server, "right", data, tmp_path / "plain", *few)
    total = sum(server.good.values())
    repeated_anyway = total - len(server.good)
    server.good.clear()
    root, path = tmp_path / "out", tmp_path / "out/smoke/eval/backbone-cot/scores.jsonl"
    for lines in (5, 25):
        child = os.fork()
        if child == 0:
            try:
                evaluate(server, "right", data, root, *few)
            finally:
                os._exit(0)
        while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it was killed"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert evaluate(server, "right", data, root, *few) == plain
    repeated = sum(server.good.values()) - len(server.good) - repeated_anyway
    print(f"two kills: {repeated} of {total} calls repeated")
    assert len(server.good) == total - repeated_anyway and repeated <= 2 * 2 * 2  # kills, judges, calls in flight
