"""One process of `test_two_processes.py`: trains the mini policy a few steps over gloo and writes down what it saw.

Started by that test, once a rank: `python -m tests.rl.two_processes <world> <policy> <folder>`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from fgrpo.errors import UserError
from rl.dual import Constraint
from rl.trainer import FaithfulGRPOTrainer
from tests.rl.conftest import Watch, build_trainer, scattered, scorer


def main(world: Path, policy: Path, folder: Path, rank: int) -> None:
    """Two trainers: the default options, and options that TRL lacks; TRL's own advantages are noted too."""
    columns = [
        scorer("task", scattered(1 + 10 * rank, 0.4)),
        scorer("one", scattered(2 + 10 * rank, 0.5, 2)),
        scorer("two", scattered(3 + 10 * rank, 0.6, 5)),
    ]
    constraints = [Constraint("one", 0.9, min_applicable=1), Constraint("two", 0.6, 2.0, min_applicable=1)]
    found: dict[str, Any] = {}
    trls: list[torch.Tensor] = []
    inner = GRPOTrainer._generate_and_score_completions

    def watched(self: Any, inputs: Any) -> Any:
        output = inner(self, inputs)
        trls.append(output["advantages"].clone())
        return output

    GRPOTrainer._generate_and_score_completions = watched
    for name, options in (("plain", {}), ("token", {"whiten": "token", "masked": "zero"})):
        trainer = build_trainer(
            world, policy, folder / name, columns, constraints, steps=3, kind=FaithfulGRPOTrainer,
            overrides=("rl.micro_batch=4",), tweak={"save_strategy": "no"}, **options,
        )  # fmt: skip
        watch = Watch(trainer)
        trls.clear()
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found[name] = {
            "seen": [(*seen, trl) for seen, trl in zip(watch.seen, trls, strict=True)],
            "dual": trainer.dual.state_dict(),
            "weights": weights,
            "world": trainer.accelerator.num_processes,
        }
    trainer._must_agree = True  # as under ZeRO-3: one process alone would wait in the vision tower
    trainer._check_mixed([True] * 4)
    try:
        trainer._check_mixed([rank == 0] * 4)
    except UserError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    import os

    main(*map(Path, sys.argv[1:4]), int(os.environ["RANK"]))
