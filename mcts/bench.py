"""Benchmarks of the search itself, without a model: how busy it keeps an endpoint, and what ten times the trees cost.

The engine is scripted: text is a pure function of the request, served after a fixed time by a limited number of slots in this process. Prints
markdown for docs/benchmarks.md; figures are ratios, so they hold on other machines.

Command: `python -m mcts.bench` (`--trees 100 1000 10000` for the growth).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fgrpo import jsonl
from fgrpo.config import load
from fgrpo.sampling.base import Completion, Request
from fgrpo.schema import Config
from fgrpo.types import Sample
from mcts.run import distil

STEPS = 3
WORDS = ("left", "left", "right")


class TimedEngine:
    """A `Sampler` that takes `service_s` a request in one of `slots`; it knows how busy it was kept.

    A reasoning has three steps with a box each; two of three answers are "left".
    """

    def __init__(self, slots: int, service_s: float) -> None:
        self._slots, self._service_s = slots, service_s
        self._gate: asyncio.Semaphore | None = None
        self.served, self.first, self.last = 0, 0.0, 0.0

    @property
    def busy_share(self) -> float:
        """Service seconds given over slot seconds there were, from the first request to the last reply."""
        return self.served * self._service_s / (self._slots * (self.last - self.first))

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` scripted continuations."""
        if self._gate is None:
            self._gate, self.first = asyncio.Semaphore(self._slots), time.perf_counter()
        async with self._gate:
            if self._service_s:
                await asyncio.sleep(self._service_s)
            self.last = time.perf_counter()
            self.served += 1
        return [_write(request, i) for i in range(request.n)]

    async def close(self) -> None:
        """Nothing to let go."""


def _write(request: Request, index: int) -> Completion:
    rng = random.Random(f"{request.seed} {index}")
    text = ""
    while True:
        written = (request.prefix + text).count("\n")
        if written >= STEPS:
            word = rng.choice(WORDS)
            text += f"So it is {word}.</think><answer>{word}</answer>"
            break
        x = rng.randrange(0, 900)
        text += f"Region {written} is at <bbox>[{x},{written},{x + 50},{written + 50}]</bbox>.\n"
        if "\n" in request.stop:
            break
    return Completion(text, "stop", (0,) * (len(text) // 4), (-0.1 - rng.random(),))


def run_trees(config: Config, trees: int, engine: TimedEngine) -> tuple[float, dict[str, int]]:
    """Run the whole stage on `trees` questions in a folder that is thrown away; seconds, and the manifest's counts."""
    with tempfile.TemporaryDirectory() as root:
        seeds = Path(root) / config.preset / "data" / "seed.jsonl"
        seeds.parent.mkdir(parents=True)
        ids = (f"sat/train/{i}" for i in range(trees))
        jsonl.write(seeds, (Sample(i, (), "Left or right?", ("left", "right"), "left").to_dict() for i in ids))
        started = time.perf_counter()
        folder = distil(config, root, engine)
        seconds = time.perf_counter() - started
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return seconds, manifest["counts"]


def main() -> None:
    """Print both benchmarks."""
    arguments = argparse.ArgumentParser(description="benchmarks of the tree search without a model")
    arguments.add_argument("--trees", type=int, nargs="*", default=[100, 1000, 10000])
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--service-ms", type=float, default=200.0)
    args = arguments.parse_args()
    config = load("paper-7b")
    engine = TimedEngine(args.slots, args.service_ms / 1000)
    _, counts = run_trees(config, 300, engine)
    print("## Tree search\n")
    print(
        f"An endpoint with {args.slots} slots and {args.service_ms:g} ms a request, {config.mcts.trees_in_flight} trees in "
        f"flight, 300 trees: slots busy {engine.busy_share:.1%} of the time; "
        f"{counts['requests'] / counts['accepted']:.2f} requests an accepted chain.\n"
    )
    print("| trees | time a tree over that of the first row | peak memory over that of the first row |\n|---|---|---|")
    first: tuple[float, float] | None = None
    for trees in args.trees:
        seconds, _ = run_trees(config, trees, TimedEngine(10**6, 0.0))
        row = (seconds / trees, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        first = first or row
        print(f"| {trees:,} | {row[0] / first[0]:.2f} | {row[1] / first[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
