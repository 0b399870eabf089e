"""Starts a training stage as the `launch` section says: in this process, or in several through accelerate.

Command: `python -m fgrpo.training.launch sft.train --preset paper-7b` (called by `make sft`). `python -m sft.train` starts
the processes in the same way where the preset sets more than one. On several machines, run the same command on each with
MASTER_ADDR (the first machine) and MACHINE_RANK (0, 1, …) in the environment; Slurm's SLURM_NODEID also works. A process
that fails ends the run, with one line that names the reason.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo import INTERRUPTED, cli, config, hardware, runs
from fgrpo.errors import UserError, unknown
from fgrpo.installed import CONFIGS, importable
from fgrpo.schema import Config
from fgrpo.training import distributed

STAGES = {"sft.train": "sft", "sft.anchor": "sft", "rl.train": "rl"}  # and the section that says how they run
FOLDERS = {"sft.train": "sft", "sft.anchor": "anchor"}  # of RL: by method
ACCELERATE = CONFIGS / "accelerate"
NO_MESSAGE = "<NONE>"  # torch's message of a process that left none, such as a killed one
MACHINE_RANKS = ("MACHINE_RANK", "NODE_RANK", "SLURM_NODEID")


@dataclass(frozen=True)
class Layout:
    """The processes of a stage: `processes` on each of `machines`, one per GPU; `stage` is its configuration section."""

    stage: str
    machines: int
    processes: int
    deepspeed: str | None
    needs_gpu: bool

    @property
    def is_plain(self) -> bool:
        """Whether it is one process without DeepSpeed, so that there is nothing to launch."""
        return self.machines * self.processes == 1 and self.deepspeed is None


def layout(cfg: Config, stage: str) -> Layout:
    """The layout that the preset sets; `stage` is "sft" or "rl"."""
    section: Any = getattr(cfg, stage)
    processes = getattr(cfg.launch, f"{stage}_processes")
    return Layout(stage, cfg.launch.machines, processes, section.deepspeed, section.precision == "bf16")


def check(required: Layout, preset: str, gpus: int) -> None:
    """Refuse a layout that this machine cannot start.

    Args:
        gpus: number of GPUs of this machine.

    Raises:
        UserError: too few GPUs, or a DeepSpeed file that cannot work here.
    """
    key = f"launch.{required.stage}_processes"
    if required.needs_gpu and gpus == 0:
        raise UserError(
            f"{preset} trains in bf16 on {required.processes} GPUs per machine, and this machine has none; "
            "run it on a GPU machine, or use PRESET=mini on this one"
        )
    if 0 < gpus < required.processes:
        raise UserError(
            f"{key} is {required.processes} (one process per GPU), and this machine has {gpus}; set {key}={gpus}"
            + (", and raise sft.gradient_accumulation to keep the traces per step" if required.stage == "sft" else "")
        )
    hardware.check_deepspeed(required.deepspeed, f"{required.stage}.deepspeed")


def command(module: str, cfg: Config, argv: Sequence[str]) -> list[str]:
    """The arguments of `accelerate launch`.

    Raises:
        UserError: several machines, and the address of the first or the rank of this one is unknown.
    """
    required, launch = layout(cfg, STAGES[module]), cfg.launch
    words = ["--config_file", str(ACCELERATE / ("ddp.yaml" if required.deepspeed is None else "deepspeed.yaml"))]
    if required.deepspeed is not None:
        words += ["--deepspeed_config_file", required.deepspeed]
    words += ["--num_machines", str(required.machines), "--num_processes", str(required.machines * required.processes)]
    if required.machines == 1:
        words += ["--machine_rank", "0", "--main_process_port", "0"]  # a free one
    else:
        address = os.environ.get("MASTER_ADDR") or launch.address
        number = next((os.environ[name] for name in MACHINE_RANKS if name in os.environ), None)
        if address is None or number is None:
            raise UserError(
                f"{required.machines} machines train together, and {'MASTER_ADDR' if address is None else 'MACHINE_RANK'} is not set; "
                "start the same command on each with MASTER_ADDR=<first machine> and MACHINE_RANK=0, 1, …"
            )
        port = os.environ.get("MASTER_PORT", str(launch.port))
        words += ["--machine_rank", number, "--main_process_ip", address, "--main_process_port", port]
    return [*words, "--module", importable(module), *argv]


def start(module: str, cfg: Config, argv: Sequence[str]) -> None:
    """Run `module` with `argv` in all its processes and wait for them.

    Raises:
        UserError: this machine cannot start them.
        SystemExit: one process failed; one line reports it, and the launcher has ended the others.
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
        logging.getLogger(name).setLevel(logging.CRITICAL)  # `_report` prints their message
    os.environ[distributed.LAUNCHER] = str(os.getpid())
    try:
        launch_command(launch_command_parser().parse_args(words))
    except SignalException as error:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + int(error.sigval))
    except ChildFailedError as error:
        sys.exit(_report(error))
    finally:
        del os.environ[distributed.LAUNCHER]  # it is true of these processes alone


def _report(error: Any) -> int:
    """Print one line about the process that failed first; returns the exit code."""
    reported = {
        n: f for n, f in error.failures.items() if f.error_file_data.get("message", NO_MESSAGE) not in ("", NO_MESSAGE)
    }
    killed = {n: f for n, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM}
    number, failure = min((reported or killed or error.failures).items(), key=lambda pair: pair[1].timestamp)
    code = int(failure.exitcode)
    if code == cli.INTERRUPTED_CODE:
        print(INTERRUPTED, file=sys.stderr)
        return code
    if reported:
        message = str(failure.error_file_data["message"])
    elif code < 0:
        guess = " (out of memory?)" if code == -signal.SIGKILL else ""
        message = (
            f"process {number} was ended by {failure.signal_name()}{guess}, and the others with it; "
            "rerun to resume from the last checkpoint"
        )
    else:
        message = f"process {number} failed (its own message is above), and the others were ended"
    print(f"error: {message}", file=sys.stderr)
    return code if code > 0 else 1


def launch_if_needed(module: str, cfg: Config, argv: Sequence[str]) -> bool:
    """Start the processes that `cfg` sets, unless they run already, and wait for them; returns whether it did so."""
    if distributed.is_started() or layout(cfg, STAGES[module]).is_plain:
        return False
    start(module, cfg, argv)
    return True


def run_stage(module: str, doc: str | None, train: Callable[[Config, str], object], argv: Sequence[str] | None) -> None:
    """Command line of a training stage: it trains in this process, or in those that the preset sets.

    Args:
        module: a key of `STAGES`.
        doc: the module's docstring.
        train: the stage, of a configuration and the root of its run folders.
        argv: the arguments; those of the command line if None.
    """

    def body(args: Any) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        if not launch_if_needed(module, cfg, sys.argv[1:] if argv is None else argv):
            train(cfg, args.runs)

    cli.run(body, cli.parser(doc or ""), argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the module of a stage, then its own arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in STAGES:
        sys.exit(f"error: {unknown('training stage', words[0] if words else '', STAGES)}")
    module, rest = words[0], words[1:]

    def body(args: Any) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        stage = FOLDERS.get(module, f"rl-{cfg.method}")
        if layout(cfg, STAGES[module]).machines == 1 and runs.is_done(
            cfg, stage, args.runs
        ):  # before torch is imported
            print(f"{runs.folder(cfg, stage, args.runs)} is done already")
        elif not launch_if_needed(module, cfg, rest):
            sys.argv = [module, *rest]
            runpy.run_module(importable(module), run_name="__main__", alter_sys=True)

    cli.run(body, cli.parser(__doc__ or ""), rest)


if __name__ == "__main__":
    main()
