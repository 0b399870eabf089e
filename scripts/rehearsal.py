"""Rehearse the paper's layout on one CPU machine: trainers, a rollout server and a judge server, each killed once.

Two trainer processes (accelerate, DeepSpeed ZeRO-3, gloo) run FGRPO on the mini model. A vLLM server whose weights follow the
policy makes the rollouts, and a vLLM judge scores them. In an order and at moments that the seed chooses, SIGKILL ends the
rollout server, the judge server and one trainer. After each kill the run must continue, or end with one line that gives the
reason, and its newest checkpoint must load. Then the killed process and the run are started again. At the end metrics.jsonl
must have every step once, with the importance ratio within 1 ± 0.05. Prints one line per event; exit code 1 if a check fails.

The policy is the shipped backbone. (After the smoke preset's few steps of SFT, forbidden tokens have a mass of 0.0005, which
takes the ratio of a rollout, a product over its tokens, to 0.95; after the mini preset's SFT it is a tenth of that.)

Command: `python scripts/rehearsal.py` (`make rehearsal`); reads runs/smoke/data, writes below --out, which it empties.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from fgrpo import runs
from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.inference.serve import order
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT, CPU_FLAGS, ROOT, Server
from fgrpo.training.checkpoints import STATE, last_checkpoint

PRESET, METHOD = "smoke", "fgrpo"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
VICTIMS = ("rollouts", "judge", "trainer")
ZERO3 = "configs/deepspeed/zero3.json"
PATIENCE_S = 3600.0
JUDGE_CONTEXT = json.dumps({"text_config": {"max_position_embeddings": 8192}})


class Rehearsal:
    """The servers, the run and the problems found."""

    def __init__(self, root: Path, processes: int, steps: int, seed: int) -> None:
        self.root, self.processes, self.steps, self.rng = root, processes, steps, random.Random(seed)
        self.config = load(PRESET, METHOD)
        self.run = runs.folder(self.config, f"rl-{METHOD}", root)
        self.policy = str(runs.folder(self.config, "sft", root) / "final")
        self.problems: list[str] = []
        self.servers = {"rollouts": self._rollouts(), "judge": self._judge()}

    def _rollouts(self) -> Server:
        ordered = order(self.config, "rollouts", [], self.policy)
        return Server(
            self.policy,
            log=self.root / "rollouts.log",
            flags=ordered.flags,
            environment=ordered.environment,
            timeout_s=PATIENCE_S,
        )

    def _judge(self) -> Server:
        environment = {**CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT / "scripts")}
        flags = (*CPU_FLAGS, "--hf-overrides", JUDGE_CONTEXT, "--logits-processors", "terse_judge:Terse")
        return Server(
            self.policy, log=self.root / "judge.log", flags=flags, environment=environment, timeout_s=PATIENCE_S
        )

    def command(self) -> list[str]:
        """The command that starts or resumes the run."""
        judge = {"backend": "openai", "model": self.policy, "endpoints": [self.servers["judge"].url]}
        settings = [
            f"launch.rl_processes={self.processes}",
            f"rl.deepspeed={ZERO3 if self.processes > 1 else 'null'}",
            "rl.rollout_engine=vllm-server",
            f"rl.vllm.server={self.servers['rollouts'].url}",
            f"rl.max_steps={self.steps}",
            *("rl.rollout_batch=4", "rl.global_batch=4", "rl.group_size=4", f"rl.micro_batch={16 // self.processes}"),
            *("rl.save_steps=2", "rl.monitor=[]", "rl.max_failed_share=0.5", "rl.dual.min_applicable=1"),
            *(f"judges.training.{key}={json.dumps(value)}" for key, value in judge.items()),
            *(
                "judges.training.attempts=2",
                "judges.training.patience_s=5",
                "judges.training.max_completion_tokens=400",
            ),
        ]
        words = ["--preset", PRESET, "--method", METHOD, "--runs", str(self.root), "--set", *settings]
        return [str(PYTHON), "-m", "rl.train", *words]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the trainers in their own session, with their output in run.log."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        with (self.root / "run.log").open("ab") as log:
            return subprocess.Popen(
                self.command(), stdout=log, stderr=log, start_new_session=True, env=environment, cwd=ROOT
            )

    def done_steps(self) -> int:
        """Optimizer steps in metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def kill(self, victim: str, trainers: subprocess.Popen[bytes]) -> str:
        """SIGKILL a server with its workers, or one of the trainer processes; returns a description of it."""
        if victim in self.servers:
            os.killpg(self.servers[victim].pid, signal.SIGKILL)
            self.servers[victim].stop()
            return f"the {victim} server"
        workers = [p for p in psutil.Process(trainers.pid).children(recursive=True) if _is_trainer(p)]
        chosen = self.rng.choice(sorted(workers, key=lambda p: p.pid) or [psutil.Process(trainers.pid)])
        chosen.kill()
        return f"one of {len(workers) or 1} trainer processes"

    def act(self, victim: str, after: int) -> None:
        """Run until `after` steps are done, kill the victim, and check how the run ends and what it leaves."""
        before, trainers = self.log_lines(), self.start()
        try:
            while self.done_steps() < after and trainers.poll() is None:
                time.sleep(0.05)
            if trainers.poll() is not None:
                self.problems.append(f"the run ended with {trainers.returncode} before {victim} could be killed")
                return
            time.sleep(self.rng.uniform(0.0, 1.0))
            killed = self.kill(victim, trainers)
            code = trainers.wait(timeout=PATIENCE_S)
        finally:
            _end(trainers)
        errors = [line for line in self.log_lines()[len(before) :] if line.startswith("error: ")]
        end = "continued" if code == 0 else f"ended with {code}: {errors[-1] if errors else 'no error line'}"
        print(f"killed {killed} after step {self.done_steps()}; the run {end}", flush=True)
        if code != 0 and not errors:
            self.problems.append(f"after the kill of {killed} the run ended with {code} and gave no reason")
        if any("Traceback" in line for line in self.log_lines()[len(before) :]):
            self.problems.append(f"after the kill of {killed} the run ended with a traceback")
        self.problems += torn_checkpoints(self.run / "checkpoints", self.done_steps())
        if victim in self.servers:
            self.servers[victim].start()

    def log_lines(self) -> list[str]:
        """Lines of run.log."""
        path = self.root / "run.log"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    def faults(self) -> list[str]:
        """Faults of the finished run."""
        lines = list(read_jsonl(self.run / "metrics.jsonl"))
        wrong = [] if (self.run / "done").exists() else ["the run is not done"]
        if [line["step"] for line in lines] != list(range(1, self.steps + 1)):
            wrong.append(f"metrics.jsonl has the steps {[line['step'] for line in lines]}")
        ratios = [line["sampling/importance_sampling_ratio/mean"] for line in lines]
        if not all(abs(ratio - 1) < 0.05 for ratio in ratios):
            wrong.append(f"importance ratios {ratios}")
        print(f"importance ratio of each step: {', '.join(f'{ratio:.4f}' for ratio in ratios)}")
        return wrong


def torn_checkpoints(folder: Path, steps: int) -> list[str]:
    """Faults of the newest checkpoint: missing though one was due, or weights or multipliers that do not load."""
    newest = last_checkpoint(folder, ("duals.json", STATE))
    if newest is None:
        return [f"no checkpoint after {steps} steps"] if steps > 2 else []
    weights = [tensor for file in newest.glob("*.safetensors") for tensor in load_file(file).values()]
    multipliers = json.loads((newest / "duals.json").read_text(encoding="utf-8"))
    states = [torch.load(file, weights_only=False) for file in newest.glob("global_step*/*optim_states.pt")]
    saved_by = json.loads((newest / "processes.json").read_text(encoding="utf-8"))
    complete = len(states) == saved_by["processes"] * (saved_by["zero"] > 0)
    if not weights or not all(bool(tensor.isfinite().all()) for tensor in weights) or not multipliers or not complete:
        return [f"{newest} is incomplete"]
    return []


def _is_trainer(process: psutil.Process) -> bool:
    try:
        return "LOCAL_RANK" in process.environ() and "rl.train" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill every process of the run that is left."""
    if process.poll() is None:
        workers = psutil.Process(process.pid).children(recursive=True)  # they have their own sessions
        os.killpg(process.pid, signal.SIGKILL)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Kill the victims in the seed's order, then run to the end."""
    arguments = argparse.ArgumentParser(description="rehearsal: trainers, rollout server, judge server, kills")
    arguments.add_argument("--runs", type=Path, default=Path("runs"), help="root with the preset's data stage")
    arguments.add_argument("--out", type=Path, default=Path("runs/rehearsal"), help="emptied first")
    arguments.add_argument("--processes", type=int, default=2, help="trainer processes")
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=0, help="chooses the order and moments of the kills")
    args = arguments.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    shutil.rmtree(args.out, ignore_errors=True)
    config = load(PRESET)
    inputs = {
        "data": runs.require(runs.folder(config, "data", args.runs), "data"),
        "sft/final": Path(config.models.base),
    }
    for name, source in inputs.items():
        link = runs.folder(config, "", args.out) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.resolve())
    show = Rehearsal(args.out.resolve(), args.processes, args.steps, args.seed)
    began = time.monotonic()
    with ExitStack() as stack:
        for server in show.servers.values():
            stack.callback(server.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.start, show.servers.values()))
        victims = show.rng.sample(VICTIMS, len(VICTIMS))
        marks = sorted(show.rng.sample(range(1, args.steps - 1), len(victims)))
        for victim, after in zip(victims, marks, strict=True):
            show.act(victim, after)
        last = show.start()
        try:
            code = last.wait(timeout=PATIENCE_S)
        finally:
            _end(last)
    if code:
        show.problems.append(f"the last run ended with {code}; see {show.root / 'run.log'}")
    problems = show.problems or show.faults()
    seconds = math.ceil(time.monotonic() - began)
    print(
        "\n".join(problems) or f"complete after {seconds} s: {args.steps} steps, nothing is lost, nothing occurs twice"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
