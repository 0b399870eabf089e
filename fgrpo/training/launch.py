"""Starts a training stage as the `launch` section says: here, or in several processes through accelerate.

Command: `python -m fgrpo.training.launch sft.train --preset paper-7b` (which `make sft` calls); `python -m sft.train` comes here too where
the preset asks for more than one process. On several machines the same command runs on each, with MASTER_ADDR (the first
machine) and MACHINE_RANK (0, 1, …) in the environment; Slurm's SLURM_NODEID is understood. A process that fails ends the
whole run, with one line that says why.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo import INTERRUPTED, cli, config, hardware, runs
from fgrpo.errors import UserError, unknown
from fgrpo.schema import Config
from fgrpo.training import distributed

STAGES = {"sft.train": "sft", "rl.train": "rl"}
ACCELERATE = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
NOTHING = "<NONE>"  # what torch has for the words of a process that left none, such as a killed one
MACHINE_RANKS = ("MACHINE_RANK", "NODE_RANK", "SLURM_NODEID")


@dataclass(frozen=True)
class Layout:
    """Where a stage's processes are: on each of `machines`, `processes`, one a GPU; `stage` is its configuration section."""

    stage: str
    machines: int
    processes: int
    deepspeed: str | None
    needs_gpu: bool

    @property
    def is_plain(self) -> bool:
        """One process without DeepSpeed: nothing to launch."""
        return self.machines * self.processes == 1 and self.deepspeed is None


def layout(cfg: Config, stage: str) -> Layout:
    """What the preset asks for; `stage` is "sft" or "rl"."""
    section: Any = getattr(cfg, stage)
    processes = getattr(cfg.launch, f"{stage}_processes")
    return Layout(stage, cfg.launch.machines, processes, section.deepspeed, section.precision == "bf16")


def check(wanted: Layout, preset: str, gpus: int) -> None:
    """Refuse what this machine cannot start.

    Args:
        gpus: how many this machine has.

    Raises:
        UserError: too few GPUs, or a DeepSpeed file that cannot work here.
    """
    key = f"launch.{wanted.stage}_processes"
    if wanted.needs_gpu and gpus == 0:
        raise UserError(
            f"{preset} trains in bf16 on {wanted.processes} GPUs a machine, and there is none here; "
            f"run it where there are, or look at the code with PRESET=mini"
        )
    if 0 < gpus < wanted.processes:
        raise UserError(
            f"{key} is {wanted.processes} (one process a GPU), and this machine has {gpus}; set {key}={gpus}"
            + (", and sft.gradient_accumulation so that a step sees as many traces" if wanted.stage == "sft" else "")
        )
    hardware.check_deepspeed(wanted.deepspeed, f"{wanted.stage}.deepspeed")


def command(module: str, cfg: Config, argv: Sequence[str]) -> list[str]:
    """The words after `accelerate launch`.

    Raises:
        UserError: several machines, and it is not known which is the first or which this one is.
    """
    wanted, launch = layout(cfg, STAGES[module]), cfg.launch
    words = ["--config_file", str(ACCELERATE / ("ddp.yaml" if wanted.deepspeed is None else "deepspeed.yaml"))]
    if wanted.deepspeed is not None:
        words += ["--deepspeed_config_file", wanted.deepspeed]
    words += ["--num_machines", str(wanted.machines), "--num_processes", str(wanted.machines * wanted.processes)]
    if wanted.machines == 1:
        words += ["--machine_rank", "0", "--main_process_port", "0"]  # a free one
    else:
        address = os.environ.get("MASTER_ADDR") or launch.address
        number = next((os.environ[name] for name in MACHINE_RANKS if name in os.environ), None)
        if address is None or number is None:
            raise UserError(
                f"{wanted.machines} machines train together, and {'MASTER_ADDR' if address is None else 'MACHINE_RANK'} is not set; "
                "start the same command on each with MASTER_ADDR=<first machine> and MACHINE_RANK=0, 1, …"
            )
        port = os.environ.get("MASTER_PORT", str(launch.port))
        words += ["--machine_rank", number, "--main_process_ip", address, "--main_process_port", port]
    return [*words, "--module", module, *argv]


def start(module: str, cfg: Config, argv: Sequence[str]) -> None:
    """Run `module` with `argv` in all its processes and wait for them.

    Raises:
        UserError: this machine cannot start them.
        SystemExit: one of them failed, after one line about it; the others have been ended.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    check(layout(cfg, STAGES[module]), cfg.preset, torch.cuda.device_count())
    words = command(module, cfg, argv)
    os.environ[cli.SIDE_BY_SIDE] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they would say is said below
    try:
        launch_command(launch_command_parser().parse_args(words))
    except SignalException as error:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + int(error.sigval))
    except ChildFailedError as error:
        sys.exit(_report(error))


def _report(error: Any) -> int:
    """Print one line about the process that failed first; returns the exit code."""
    told = {n: f for n, f in error.failures.items() if f.error_file_data.get("message", NOTHING) not in ("", NOTHING)}
    killed = {n: f for n, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM}
    number, failure = min((told or killed or error.failures).items(), key=lambda pair: pair[1].timestamp)
    code = int(failure.exitcode)
    if code == cli.INTERRUPTED_CODE:
        print(INTERRUPTED, file=sys.stderr)
        return code
    if told:
        said = str(failure.error_file_data["message"])
    elif code < 0:
        why = " (out of memory?)" if code == -signal.SIGKILL else ""
        said = (
            f"process {number} was ended by {failure.signal_name()}{why}, and the others with it; the same command goes on from "
            "the last checkpoint"
        )
    else:
        said = f"process {number} failed: its own message is above; the others have been ended"
    print(f"error: {said}", file=sys.stderr)
    return code if code > 0 else 1


def start_if_asked(module: str, cfg: Config, argv: Sequence[str]) -> bool:
    """Whether `cfg` asks for processes that are not running yet; they have been started then, and are done."""
    if distributed.is_started() or layout(cfg, STAGES[module]).is_plain:
        return False
    start(module, cfg, argv)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: a stage's module, then its own arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in STAGES:
        sys.exit(f"error: {unknown('training stage', words[0] if words else '', STAGES)}")
    module, rest = words[0], words[1:]

    def body(args: Any) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        stage = "sft" if STAGES[module] == "sft" else f"{STAGES[module]}-{cfg.method}"
        if layout(cfg, STAGES[module]).machines == 1 and runs.is_done(
            cfg, stage, args.runs
        ):  # before torch is imported
            print(f"{runs.folder(cfg, stage, args.runs)} is done already")
        elif not start_if_asked(module, cfg, rest):
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)

    cli.run(body, cli.parser(__doc__ or ""), rest)


if __name__ == "__main__":
    main()
