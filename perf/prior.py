"""Effect of PUCT's prior: simulations until a synthetic tree holds the right answer, and where the visits go.

The tree has four levels with three steps each, one of them right, which the teacher proposes with probability p; only the
complete path gives the right answer. The figures are counts, so they are the same on every machine.

Command: `python -m perf.prior`.
"""

from __future__ import annotations

import asyncio
import statistics
from functools import cache
from typing import Any

from fgrpo.config import load
from fgrpo.schema import Mcts
from fgrpo.types import Sample
from mcts.search import iterate, search
from mcts.tree import Settings, Tree
from perf import common
from perf.scripted import ScriptedTeacher, ladder

SEEDS = 24
SAMPLE = Sample("toy/train/1", (), "Is it left or right?", ("left", "right"), "left")
WAYS: dict[str, dict[str, Any]] = {
    "PUCT, log-probability prior": {},
    "PUCT, uniform prior": {"prior": "uniform"},
    "UCB1": {"selection": "ucb1"},
    "UCB1, c = 1": {"selection": "ucb1", "c_puct": 1.0},
}


def tree(seed: int, **changes: Any) -> Tree:
    """An empty tree with the paper's settings except `changes`; expansions retry long enough to find all three steps."""
    mcts = _paper().model_copy(update={"expand_attempts": 12, **changes})
    return Tree(SAMPLE, Settings.of(mcts, seed))


@cache
def _paper() -> Mcts:
    return load("paper-7b").mcts


def needed(likely: float, seeds: int = SEEDS, **changes: Any) -> float:
    """Mean number of simulations, one rollout per child, until a node of the tree has the right answer."""
    counts: list[int] = []
    for seed in range(seeds):
        grown, teacher = tree(seed, rollouts=1, **changes), ScriptedTeacher(ladder(likely))
        counts.append(0)
        while not any(node.reward for node in grown.root.walk()):
            asyncio.run(iterate(grown, teacher))
            counts[-1] += 1
    return statistics.mean(counts)


def share_of_best(simulations: int, likely: float = 0.6, seeds: int = 6, **changes: Any) -> float:
    """Mean share of the root's visits that went to the right first step."""
    shares = []
    for seed in range(seeds):
        grown = tree(seed, simulations=simulations, **changes)
        asyncio.run(search(grown, ScriptedTeacher(ladder(likely))))
        (best,) = [child for child in grown.root.children if child.step == "a0"]
        shares.append(best.visits / grown.root.visits)
    return statistics.mean(shares)


def main() -> None:
    """Print both tables."""
    rows = [(f"{p}", *(f"{needed(p, **changes):.1f}" for changes in WAYS.values())) for p in (0.5, 0.6)]
    words = (
        "A synthetic tree of depth 4 with three steps at each level, one of them right; the teacher proposes the right one "
        f"with probability p. Mean number of simulations ({SEEDS} seeds, c = 2, one rollout per child) until the tree holds "
        "the right answer."
    )
    common.show("Effect of the prior", words, ("p", *WAYS), rows)
    sizes = (6, 24, 80)
    shares = [(name, *(f"{share_of_best(n, **changes):.2f}" for n in sizes)) for name, changes in WAYS.items()]
    common.show(
        "Where the visits go",
        "Share of the root's visits on the right first step (p = 0.6, 6 seeds, two rollouts per child) as simulations grow.",
        ("simulations", *map(str, sizes)),
        shares,
    )


if __name__ == "__main__":
    main()
