"""Evaluation, search and curation behind endpoints of which three replies in ten are odd, and kills while scoring, at size.

First part: each stage once behind a server that answers rightly and once behind one that gives three requests in ten another
fault of `tests.odd_server`. Second part: an evaluation that is killed with SIGKILL twice while its judges' verdicts arrive, with
the default cache of replies. The final files must be equal; a line that changed to a zero, a line that is lost, and a good reply
that was paid for twice are counted. Retries wait on a quick clock (`tests.clock.hurry`), connections are real.

Command: `python -m scripts.mixed_faults [--questions 200] [--trees 24]` (writes to runs/mixed).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.smoke_stages import config  # sets the number of threads before torch is imported
from tests import test_odd_endpoints_stages as small
from tests.clock import hurry
from tests.mcts.test_run import seeded
from tests.odd_server import KEY, OddServer, running

TOP = Path("runs/mixed").absolute()
FILES = dict[str, bytes]
__all__ = ["config"]


def evaluate(server: OddServer, name: str, root: Path, *more: str) -> FILES:
    """One evaluation on four benchmarks."""
    return small.evaluate(server, name, TOP / "data", root, *more)


def search(server: OddServer, name: str, root: Path) -> FILES:
    """The search over the scripted teacher."""
    if not root.exists():
        seeded(root, TREES)
    return small.search(server, name, TOP / "data", root)


def curation(server: OddServer, name: str, root: Path) -> FILES:
    """The curation with its difficulty rollouts."""
    return small.curated(server, name, TOP / "data", root)


TREES = 24


def zeros(plain: FILES, odd: FILES) -> int:
    """Answers that have another accuracy, or scores that became zero, among the lines that differ."""
    before = {row["id"]: row for row in map(json.loads, plain.get("scores.jsonl", b"").splitlines())}
    after = {row["id"]: row for row in map(json.loads, odd.get("scores.jsonl", b"").splitlines())}
    return sum(
        score["value"] == 0.0 != before[i]["scores"][name]["value"]
        for i, row in after.items()
        for name, score in row["scores"].items()
    )


def mixed(server: OddServer, stage: Callable[..., FILES]) -> list[str]:
    """Faults of one stage at 30% odd replies."""
    name = stage.__name__
    server.good.clear()
    server.faults.clear()
    plain = stage(server, "right", TOP / f"{name}-right")
    requests = sum(server.good.values())
    server.good.clear()
    odd = stage(server, "mixed", TOP / f"{name}-mixed")
    faults, twice = sum(server.faults.values()), sum(server.good.values()) - requests
    changed, lost = small.lines_that_differ(plain, odd)
    nothing = zeros(plain, odd)
    print(
        f"| {name} | {requests:,} | {faults:,} of {len(server.faults)} kinds | {nothing} | {lost} | {changed} | "
        f"{twice} ({100 * twice / requests:.2f}%) |", flush=True,
    )  # fmt: skip
    is_right = plain == odd and not nothing and not lost and twice <= 0.01 * requests
    return [] if is_right else [f"{name}: the files differ, or more than 1% was paid twice"]


def kills(server: OddServer) -> list[str]:
    """Faults of an evaluation that is killed twice while it scores."""
    server.good.clear()
    plain = evaluate(server, "right", TOP / "whole")
    total, answers = sum(server.good.values()), plain["generations.jsonl"].count(b"\n")
    anyway = total - len(server.good)
    server.good.clear()
    root = TOP / "killed"
    path = root / "smoke/eval/backbone-cot/scores.jsonl"
    for share in (0.3, 0.7):
        child = os.fork()
        if child == 0:
            try:
                evaluate(server, "right", root)
            finally:
                os._exit(0)
        while not (path.exists() and path.read_bytes().count(b"\n") >= share * answers):
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return ["it ended before it was killed"]
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found = evaluate(server, "right", root)
    repeated = sum(server.good.values()) - len(server.good) - anyway
    calls = total - answers
    print(
        f"two kills while scoring {answers:,} answers: {repeated} of {calls:,} judge calls repeated ({100 * repeated / calls:.2f}%)"
    )
    return (
        []
        if found == plain and repeated <= 0.01 * calls
        else ["the killed evaluation differs, or repeated more than 1%"]
    )


def main() -> None:
    """Both parts."""
    global TREES
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=200, help="of each benchmark (default: 200)")
    parser.add_argument("--trees", type=int, default=TREES)
    args = parser.parse_args()
    TREES = args.trees
    shutil.rmtree(TOP, ignore_errors=True)
    patch = pytest.MonkeyPatch()
    hurry(patch)
    patch.setenv("OPENAI_API_KEY", KEY)
    from fgrpo.config import load
    from miniworld.write.__main__ import write_world

    sizes = ["world.train_per_source=100", f"world.bench_per_benchmark={args.questions}", f"data.root={TOP / 'data'}"]
    write_world(load("smoke", "fgrpo", sizes), TOP / "world")
    problems: list[str] = []
    with running() as server:
        print(
            "| stage | requests | odd replies | zeros | lost lines | changed lines | good replies paid twice |\n|---|"
            + "---:|" * 6
        )
        for stage in (search, curation, evaluate):
            problems += mixed(server, stage)
        problems += kills(server)
    print("\n".join(problems) or f"complete; kinds of faults: {len(Counter(server.faults))}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
