"""Free memory of the GPUs that a stage is about to use: a server or run that was left behind is noticed before hours of loading.

Command: `python -m ops.gpu_memory sft --preset paper-7b` (`make sft`, `make anchor` and `make rl-<method>` call it first). Prints nothing where
there is enough, where the stage is done, or where there are no GPUs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from fgrpo import cli, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.hardware import free_memory
from fgrpo.schema import Config
from ops.connectivity import Finding
from ops.training_memory import likely_memory
from ops.training_stages import Stage, folder_of, processes, section

POLL_S = 1.0
SMALL_GIB = 1.0  # of a driver and its display


def training_gib(config: Config, stage: Stage) -> float:
    """GiB that a training process likely needs on its GPU, as `make plan` estimates it."""
    from ops.assumptions import Assumptions
    from ops.memory_estimate import peak, shape_of

    parts = likely_memory(config, stage, shape_of(config.models.base), Assumptions())
    return peak(parts) / 2**30


def check(config: Config, stage: Stage) -> None:
    """Refuse a training stage on GPUs that other processes occupy.

    Raises:
        UserError: a GPU has less free memory than a training process likely needs (names it).
    """
    number = processes(config, stage)
    free = dict(list(free_memory().items())[:number])
    if not free or section(config, stage).precision != "bf16":
        return
    wanted = training_gib(config, stage)
    short = {name: gib for name, gib in free.items() if gib < wanted}
    if short:
        shown = ", ".join(f"GPU {name} has {gib:.0f}" for name, gib in short.items())
        raise UserError(
            f"{stage} likely needs {wanted:.0f} GiB of free memory on each of {number} GPUs (make plan), and {shown}; end the processes "
            "that nvidia-smi shows there (a server that is still up?), or choose other GPUs with CUDA_VISIBLE_DEVICES"
        )


def unoccupied(gpus: Sequence[str], patience_s: float = 0.0) -> Iterator[Finding]:
    """Whether nobody else uses the memory of these GPUs, as CUDA_VISIBLE_DEVICES names them. Nothing without GPUs.

    Args:
        patience_s: how long to wait for processes that are about to end.
    """
    limit = time.monotonic() + patience_s
    while True:
        free, used = free_memory(), free_memory("memory.used")
        occupied = {name: used[name] for name in gpus if used.get(name, 0.0) > SMALL_GIB}
        if not occupied or time.monotonic() >= limit:
            break
        time.sleep(POLL_S)
    if occupied:
        shown = ", ".join(f"{gib:.0f} GiB of GPU {name}" for name, gib in occupied.items())
        yield Finding(
            "fail", f"other processes use {shown}", "nvidia-smi  # shows them; end them, or set CUDA_VISIBLE_DEVICES"
        )
    elif free:
        yield Finding("ok", f"nobody else uses the memory of {len(gpus)} GPUs")


def main() -> None:
    """Command line; exit code 2 where memory is missing."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        folder = runs.folder(config, folder_of(config, args.stage), args.runs)
        if not (folder / runs.DONE).exists():
            check(config, args.stage)

    arguments = cli.parser("check the free memory of the GPUs that a training stage takes")
    arguments.add_argument("stage", choices=("sft", "anchor", "rl"))
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
