"""Cost of several processes and of ZeRO-3: SFT's step in four layouts over the same traces and batch.

Command: `python -m perf.zero3 --preset mini` (after `make sft`). Each layout is started through torchrun, which runs
this module with `--report`. The rounds alternate, so that a machine that slows down affects all layouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback

import sft.train
from fgrpo import cli, config, runs
from fgrpo.errors import UserError
from fgrpo.training import distributed
from perf.common import median, show

STEPS, WARM_UP, ROUNDS, BATCH = 14, 2, 3, 32
ZERO3 = "configs/deepspeed/zero3.json"
LAYOUTS = {
    "one process, plain": (1, None),
    "one process, ZeRO-3": (1, ZERO3),
    "two processes, DDP": (2, None),
    "two processes, ZeRO-3": (2, ZERO3),
}


class Clock(TrainerCallback):
    """Seconds of each optimizer step, without logging and saving between steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)


def report(args: argparse.Namespace) -> None:
    """One process of one layout: trains, and the main one writes the steps' seconds to `args.report`."""
    cfg = config.load(args.preset, args.method, args.set)
    traces = runs.require(runs.folder(cfg, "mcts", args.runs) / "sft.jsonl", "mcts")
    with (
        TemporaryDirectory() as root,
        distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, "sft", [traces], root) as run,
    ):
        trainer, logbook = sft.train.build_trainer(cfg, run, traces)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        logbook.close()
        if distributed.rank() == 0:
            Path(args.report).write_text(
                json.dumps({"steps": clock.steps[WARM_UP:], "parameters": _parameters(trainer)})
            )


def _parameters(trainer: sft.train.Trainer) -> int:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def measure(args: argparse.Namespace, processes: int, deepspeed: str | None) -> dict[str, Any]:
    """Start one layout; returns its report."""
    wanted = [
        *(f"sft.max_steps={STEPS}", f"sft.save_steps={STEPS + 1}", f"sft.batch_size={BATCH // processes}"),
        *(f"sft.deepspeed={deepspeed or 'null'}", "data.validation_share=0.0"),
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        words = ["--preset", args.preset, "--runs", args.runs, "--report", str(file), "--set", *args.set, *wanted]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        starter = [] if processes == 1 and deepspeed is None else torchrun
        done = subprocess.run(
            [sys.executable, *starter, "-m", "perf.zero3", *words],
            stdout=sys.stderr,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            check=False,
        )
        if done.returncode:
            raise UserError(f"{processes} processes with sft.deepspeed={deepspeed} failed (see above)")
        result: dict[str, Any] = json.loads(file.read_text())
        return result


def compare(args: argparse.Namespace) -> None:
    """All layouts in turn, and their table."""
    steps: dict[str, list[float]] = defaultdict(list)
    parameters = 0
    for _ in range(ROUNDS):
        for name, (processes, deepspeed) in LAYOUTS.items():
            result = measure(args, processes, deepspeed)
            steps[name] += result["steps"]
            parameters = int(result["parameters"])
    plain = median(steps["one process, plain"])
    rows = [(name, f"{median(values) / plain:.2f}", len(values)) for name, values in steps.items()]
    where = "one per GPU" if torch.cuda.is_available() else "on one machine's cores, over gloo"
    show(
        "Several processes and ZeRO-3",
        f"SFT's median step of {BATCH} traces over that of one plain process; processes {where}. The model has "
        f"{parameters / 1e6:.1f}M parameters, so this is the cost of gathering and sharding them, the worst case: a larger model "
        "computes more between gathers.",
        ("layout", "step / plain step", "steps"),
        rows,
    )


def main() -> None:
    """Command line."""
    arguments = cli.parser((__doc__ or "").splitlines()[0])
    arguments.add_argument("--report", metavar="FILE", help=argparse.SUPPRESS)
    cli.run(lambda args: report(args) if args.report else compare(args), arguments)


if __name__ == "__main__":
    main()
