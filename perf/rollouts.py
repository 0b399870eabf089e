"""Rollouts per second of RL's sampling engines, in one session: TRL's generate, our decoder, vLLM in two modes.

Each engine does a short run of rl.train from the same SFT policy over the same prompts, one after the other, each in a process
of vLLM's environment (which has the same torch), one core each; a vLLM server is one more process. The first steps, which
fill caches, are dropped. Sampling and the transfer of weights to vLLM are measured separately.
Command: `python -m perf.rollouts --preset mini` (after `make sft` and `make setup-vllm`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fgrpo import cli, runs
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.serve import order
from fgrpo.inference.vllm_server import ROOT, Server
from perf.common import WARM_UP, borrowed_stages, load, median, show

STEPS = 8
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
ENGINES = {
    "generate": ("TRL, transformers' `generate`", "transformers"),
    "local": ("ours (`rl.in_process_trainer`)", "transformers"),
    "server": ("vLLM, its server", "vllm-server"),
    "colocate": ("vLLM, colocated", "vllm-colocate"),
}


def train(args: argparse.Namespace) -> None:
    """One engine's run, in vLLM's environment."""
    import rl.train
    from perf.common import generated_by
    from rl.trainer import FaithfulGRPOTrainer

    engine = ENGINES[args.engine][1]
    few = (f"rl.max_steps={STEPS}", f"rl.save_steps={STEPS}", f"rl.rollout_engine={engine}")
    with generated_by(FaithfulGRPOTrainer if args.engine == "generate" else None):
        rl.train.train(load(args, args.method, *few), args.runs)


def lines(args: argparse.Namespace, engine: str, root: Path, server: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl of one engine's run, without the first steps.

    Raises:
        UserError: it failed.
    """
    words = ["--preset", args.preset, "--method", args.method, "--runs", str(root), "--engine", engine]
    settings = [*args.set, *([f"rl.vllm.server={server}"] if server else [])]
    done = subprocess.run(
        [str(PYTHON), "-m", "perf.rollouts", *words, *(["--set", *settings] if settings else [])],
        stdout=sys.stderr,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if done.returncode:
        raise UserError(f"the run with the engine {engine} failed (see above)")
    folder = runs.folder(load(args, args.method), f"rl-{args.method}", root)
    lines_of = list(read_jsonl(folder / "metrics.jsonl"))[WARM_UP:]
    folder.rename(folder.with_name(f"{folder.name}-{engine}"))
    return lines_of


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What every engine's run wrote."""
    with borrowed_stages(args) as root, TemporaryDirectory() as scratch:
        lines_of = {engine: lines(args, engine, root) for engine in ("generate", "local", "colocate")}
        cfg = load(args, args.method)
        ordered = order(cfg, "rollouts", [], str(runs.folder(cfg, "sft", root) / "final"))
        log = Path(scratch) / "server.log"
        with Server(ordered.model, log=log, flags=ordered.flags, environment=ordered.environment) as server:
            lines_of["server"] = lines(args, "server", root, server.url)
    return lines_of


def table(args: argparse.Namespace) -> None:
    """Four runs, one table."""
    if not PYTHON.is_file():
        print("## Rollout engines\n\nNot measured: vLLM's environment is missing (`make setup-vllm`).\n")
        return
    lines_of = measure(args)
    rl = load(args, args.method).rl
    rollouts = rl.rollout_batch * rl.group_size
    rate = {engine: rollouts / median([line["seconds/generation"] for line in ran]) for engine, ran in lines_of.items()}
    rows = []
    for engine, (words, _) in ENGINES.items():
        ran = lines_of[engine]
        synced = median([1000 * line["seconds/sync"] for line in ran]) if "seconds/sync" in ran[0] else None
        share = median(
            [(line["seconds/generation"] + line.get("seconds/sync", 0)) / line["seconds/step"] for line in ran]
        )
        times = f"{rate[engine] / rate['generate']:.1f}"
        rows.append(
            (words, f"{rate[engine]:.0f}", times, "–" if synced is None else f"{synced:.0f} ms", f"{share:.0%}")
        )
    show(
        "Rollout engines",
        f"{rl.rollout_batch} prompts x {rl.group_size} rollouts of at most {rl.max_response_length} tokens per step, "
        f"{STEPS - WARM_UP} steps, one process and one core (the server is a separate process); images of the prompts included. "
        "This is the mini model on a CPU and says nothing about larger models or GPUs.",
        ("engine", "rollouts per second", "over `generate`", "weight sync", "share of the step"),
        rows,
    )


def main() -> None:
    """Command line of the benchmark, and of each engine's run."""
    arguments = cli.parser((__doc__ or "").splitlines()[0])
    arguments.add_argument("--engine", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    cli.run(lambda args: train(args) if args.engine else table(args), arguments)


if __name__ == "__main__":
    main()
