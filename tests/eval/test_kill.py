"""SIGKILL at any moment of generating, settling and scoring: nothing is made twice, and the end is the same to the byte."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from eval import miniworld_truth, run, score, tables
from fgrpo.files import json_line, read_ids, read_jsonl
from fgrpo.inference.base import Completion, Request
from fgrpo.schema import Config

BENCHMARKS = ("mmvp", "cvb_2d", "sat_real")
FILES = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")
# Killed as soon as a file has that many lines; 0: at once. There are 16 answers, greedy and sampled ones.
MOMENTS = [
    (FILES[0], 0),
    *((FILES[0], n) for n in (1, 4, 9, 15, 16)),
    *((FILES[2], n) for n in (1, 6, 13)),
    (FILES[1], 1),
]


class Slow(Scripted):
    """Takes its time, and notes which requests it was asked in `log`."""

    log: Path

    async def sample(self, request: Request) -> Sequence[Completion]:
        with self.log.open("a") as out:
            out.write(json_line({"text": request.text, "images": request.images, "seed": request.seed}) + "\n")
        await asyncio.sleep(0.01)
        return await super().sample(request)


def evaluate(world: Config, root: Path, log: Path) -> None:
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    sampler = Slow(book)
    sampler.log = log
    run.evaluate(world, "backbone-cot", BENCHMARKS, root, sampler)


def killed_at(moment: tuple[Path, int], world: Config, root: Path, log: Path) -> bool:
    """Evaluate in a process of its own, killed once the file has that many lines; whether it was done before that."""
    path, lines = moment
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            evaluate(world, root, log)
            code = 0
        finally:
            os._exit(code)
    while lines and not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the evaluation failed by itself"
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def whole_lines(path: Path) -> set[str]:
    return read_ids(path) if path.exists() else set()


def test_sigkill_at_any_moment(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_at_once = world.model_copy(update={"engine": world.engine.model_copy(update={"concurrency": 2})})
    plain = score.Scorer.score

    async def slowly(*args: Any) -> Any:
        await asyncio.sleep(0.01)
        return await plain(*args)

    monkeypatch.setattr(score, "IN_FLIGHT", 3)
    monkeypatch.setattr(score.Scorer, "score", slowly)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    evaluate(few_at_once, whole, tmp_path / "whole.log")
    total = len(list(read_jsonl(tmp_path / "whole.log")))
    folder = torn / world.preset / "eval/backbone-cot"
    held, killed = set[str](), 0
    for n, (name, lines) in enumerate(MOMENTS):
        log = tmp_path / f"{n}.log"
        log.touch()
        killed += not killed_at((folder / name, min(lines, total)), few_at_once, torn, log)
        now = read_ids(folder / "generations.jsonl")
        assert held <= now, "an answer was lost"
        asked = len(list(read_jsonl(log)))
        assert asked <= len(now - held) + few_at_once.engine.concurrency, "an answer was made twice"
        held = now
    assert killed >= 7  # those while generating, and more
    last = tmp_path / "last.log"
    last.touch()
    evaluate(few_at_once, torn, last)
    assert len(held) + len(list(read_jsonl(last))) == total
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / world.preset / "eval/backbone-cot" / name).read_bytes(), name
    written = {}
    for root in (whole, torn):
        _, _, out = tables.build(world, root)
        written[root] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    assert written[whole] == written[torn] and "table1.md" in written[whole]
