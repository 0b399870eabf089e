"""Golden trees: complete trees after every iteration, with script and settings.

`python -m tests.mcts.golden` rewrites them; review the diff before committing it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcts.search import iterate
from mcts.tree import Settings, Tree
from perf.scripted import Script, ScriptedTeacher
from tests.mcts.scripted import sample, settings

GOLDEN = Path(__file__).resolve().parent / "golden_trees"

# Look at the full image (W) or at parts (P, Q); a wrong part usually leads to a wrong answer.
SCRIPT: dict[str, list[tuple[float, str]]] = {
    "": [
        (0.5, "W <bbox>[0,0,100,100]</bbox>"),
        (0.3, "P <bbox>[10,10,50,50]</bbox>"),
        (0.2, "Q <bbox>[50,50,90,90]</bbox>"),
    ],
    "W <bbox>[0,0,100,100]</bbox>": [
        (0.6, "P <bbox>[10,10,50,50]</bbox>"),
        (0.3, "Q <bbox>[50,50,90,90]</bbox>"),
        (0.1, "Q again <bbox>[0,0,100,100]</bbox>"),
    ],
    "Q again <bbox>[0,0,100,100]</bbox>": [(1.0, "So right.</think><answer>right</answer>")],
    "P <bbox>[10,10,50,50]</bbox>": [
        (0.7, "So left.</think><answer>left</answer>"),
        (0.2, "So right.</think><answer>right</answer>"),
        (0.1, "Q <bbox>[50,50,90,90]</bbox>"),
    ],
    "Q <bbox>[50,50,90,90]</bbox>": [
        (0.8, "So right.</think><answer>right</answer>"),
        (0.2, "So left.</think><answer>left</answer>"),
    ],
}
CASES = {
    "puct": settings(),
    "puct_uniform": settings(prior="uniform", seed=1),
    "ucb1": settings(selection="ucb1", seed=2),
    "shallow": settings(max_depth=1, rollouts=1, simulations=5, seed=3),
}


async def snapshots(script: Script, search_settings: Settings) -> list[dict[str, Any]]:
    """The tree after each iteration."""
    tree = Tree(sample(), search_settings)
    teacher = ScriptedTeacher(script)
    trees: list[dict[str, Any]] = []
    for _ in range(search_settings.simulations):
        await iterate(tree, teacher)
        trees.append(tree.to_dict())
    return trees


def write(cases: Mapping[str, Settings] = CASES) -> None:
    """Write all golden files."""
    GOLDEN.mkdir(exist_ok=True)
    for name, search_settings in cases.items():
        stored = {
            "settings": asdict(search_settings),
            "script": SCRIPT,
            "trees": asyncio.run(snapshots(SCRIPT, search_settings)),
        }
        (GOLDEN / f"{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
