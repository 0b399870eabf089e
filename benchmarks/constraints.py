"""What the constraints cost: FGRPO's step over plain GRPO's, the two trainers taking turns in one process.

Both have the same weights throughout (a learning rate of nearly 0) and the same random numbers at each step, so they write
the same rollouts, and the pairs differ by judging, combining and the dual step alone.
Command: `python -m benchmarks.constraints --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.common import WARM_UP, borrowed_stages, load, main, median, show
from fgrpo import runs
from rl.train import build_trainer

STEPS = 9
METHODS = ("grpo-t", "fgrpo")


class Turns(TrainerCallback):
    """Lets one trainer take a step while the other waits; `spent` are its steps' seconds."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.mine, self.other = mine, other
        self.spent: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mine.acquire()
        torch.manual_seed(state.global_step)
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.spent.append(time.perf_counter() - self.began)
        self.other.release()


def alternate(args: argparse.Namespace, root: Path) -> dict[str, list[float]]:
    """Seconds of each step of both methods."""
    gates = {method: threading.Semaphore(i == 0) for i, method in enumerate(METHODS)}
    turns = {m: Turns(gates[m], gates[METHODS[1 - i]]) for i, m in enumerate(METHODS)}
    threads, failures = [], list[BaseException]()
    for method in METHODS:
        small = (f"rl.max_steps={STEPS}", "rl.learning_rate=1.0e-12", f"rl.save_steps={100 * STEPS}")
        cfg = load(args, method, *small, "rl.monitor=[]")
        questions, policy = runs.folder(cfg, "data", root) / "rl.jsonl", runs.folder(cfg, "sft", root) / "final"
        run = runs.Run.open(cfg, f"rl-{method}", [questions, policy], root)
        trainer, _ = build_trainer(cfg, run, questions, policy)
        trainer.add_callback(turns[method])

        def work(trainer: Any = trainer) -> None:
            try:
                trainer.train()
            except BaseException as error:  # noqa: BLE001 - handed to the main thread
                failures.append(error)
                for gate in gates.values():
                    gate.release(STEPS)

        threads.append(threading.Thread(target=work))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {method: turn.spent[WARM_UP:] for method, turn in turns.items()}


def body(args: argparse.Namespace) -> None:
    """One table."""
    with borrowed_stages(args) as root:
        spent = alternate(args, root)
    ratio = median([b / a for a, b in zip(spent["grpo-t"], spent["fgrpo"], strict=True)])
    show(
        "What the constraints cost",
        f"{STEPS - WARM_UP} pairs of steps on the same rollouts, in turns, one process and one core; exact judges (the oracle).",
        ("step of", "over plain GRPO's, median of the pairs"),
        [("plain GRPO (task reward alone)", "1.00"), ("FGRPO (three constraints)", f"{ratio:.2f}")],
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
