"""Where one RL step's time goes, with TRL's own generation and with ours (`rl.in_process_trainer`), from two short runs of rl.train.

Command: `python -m perf.rl_step --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import rl.train
from fgrpo.files import read_jsonl
from perf.common import WARM_UP, borrowed_stages, generated_by, load, main, median, show, with_padded_rows
from rl.in_process_trainer import InProcessTrainer
from rl.trainer import FaithfulGRPOTrainer

STEPS = 8
PARTS = {
    "generation": "generation",
    "logprobs": "log-probabilities",
    "judging": "waiting for judges",
    "update": "update",
}


def profile(args: argparse.Namespace, trainer: type[FaithfulGRPOTrainer]) -> dict[str, float]:
    """Median seconds of each part of a step, and of the complete step, with this trainer."""
    cfg = load(args, args.method, f"rl.max_steps={STEPS}", f"rl.save_steps={STEPS}")
    with generated_by(trainer), borrowed_stages(args) as root:
        lines = list(read_jsonl(Path(rl.train.train(cfg, root)) / "metrics.jsonl"))[WARM_UP:]
    return {part: median([line[f"seconds/{part}"] for line in lines]) for part in (*PARTS, "step")}


def body(args: argparse.Namespace) -> None:
    """Two runs, one table."""
    before, after = profile(args, with_padded_rows(FaithfulGRPOTrainer)), profile(args, InProcessTrainer)
    rows = []
    for part, words in {**PARTS, "step": "**whole step**"}.items():
        ratio = f"{before[part] / after[part]:.1f}" if after[part] > 0.01 * after["step"] else "–"
        shares = (f"{times[part] / times['step']:.0%}" for times in (before, after))
        rows.append((words, *shares, ratio))
    show(
        "One RL step",
        f"Share of the median step's time ({STEPS - WARM_UP} steps, method {args.method}, one core); the last column is how "
        "many times longer TRL's own path takes. Judges run during the log-probability passes; the remaining time is waiting. The "
        "largest parts are optimized: generation has its own decoder (a group's prompt is read once, finished rows leave the batch), "
        "a frozen vision tower sees each image once per step, and rollouts of a prompt share its row, without padding. "
        "What remains is the update: matrix products of forward and backward.",
        ("part", "TRL's path", "InProcessTrainer", "TRL's / ours"),
        rows,
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
