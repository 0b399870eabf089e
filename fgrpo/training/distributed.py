"""Coordination of the processes of one training run: their backend, the main process, and broadcast decisions.

Each process of a run (a rank) executes the same stage. Only the main process opens the run folder, reads the disk to
decide, and writes; it broadcasts its decisions (`on_main`). DeepSpeed's file reaches accelerate through accelerate's own
environment variables. So a stage started by `fgrpo.training.launch`, accelerate or torchrun is the same run. Imports torch
inside functions only.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fgrpo import runs
from fgrpo.errors import UserError
from fgrpo.process_guard import end_with_parent
from fgrpo.schema import Config

LAUNCHER = "FGRPO_LAUNCHER"  # the process id of `fgrpo.training.launch`, for the processes that it starts

Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes of this run, as torchrun and accelerate set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The rank of this process; 0 is the main process."""
    return int(os.environ.get("RANK", "0"))


def is_started() -> bool:
    """Whether a launcher started this process, even as the only one."""
    return "LOCAL_RANK" in os.environ


def trainer_arguments(deepspeed: str | None, timeout_s: int, image_workers: int) -> dict[str, Any]:
    """transformers' training arguments for the processes of a run; on a CPU the backend is gloo.

    DeepSpeed's file is not among them: transformers accepts no backend next to one, so accelerate reads the file from the
    environment (`session`).
    """
    import torch

    out: dict[str, Any] = {"ddp_timeout": timeout_s, "dataloader_num_workers": image_workers}
    if image_workers:
        out["dataloader_persistent_workers"] = True  # or each pass over the data starts them again
    if is_started() and not torch.cuda.is_available():
        out |= {"ddp_backend": "gloo", "use_cpu": deepspeed is None}
    return out


@contextmanager
def session(deepspeed: str | None, timeout_s: int) -> Iterator[None]:
    """Connect the processes of one training run; call it before anything else.

    Args:
        deepspeed: the DeepSpeed file of the configuration.
        timeout_s: how long processes wait for one another before the run fails.
    """
    if not is_started():
        yield
        return
    import torch
    from accelerate import PartialState

    launcher = os.environ.pop(LAUNCHER, None)  # it is not the parent of the processes that this one starts
    end_with_parent(None if launcher is None else int(launcher))  # no process waits for peers that are gone
    kwargs: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s)}
    on_cpu = not torch.cuda.is_available()
    if deepspeed is not None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(Path(deepspeed).resolve())
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "true"
        # DeepSpeed calls functions of torch by deprecated names, and torch warns at each call of each process
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        if on_cpu:
            without_built_ops()
    else:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        if on_cpu:  # accelerate would name it cpu:0, which torch.load does not accept on resume
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._reset_state()  # of an earlier session in this process
    PartialState(cpu=on_cpu and deepspeed is None, backend="gloo" if on_cpu else None, **kwargs)
    yield
    PartialState().wait_for_everyone()
    _leave_at_exit()


@cache
def _leave_at_exit() -> None:
    """Disconnect before the interpreter ends, while all processes still run.

    Threads of gloo that are left to its end abort it now and then ("terminate called without an active exception"), after the stage
    is done. Within the process a further session uses the connection again.
    """
    atexit.register(_leave)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def without_built_ops() -> None:
    """Keep DeepSpeed on a CPU from compiling its own communication backend; torch's gloo does the same work.

    Compiling takes a compiler and two minutes. `deepspeed.ops` documents that edits to this table persist.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def on_main(work: Callable[[], Result]) -> Result:
    """Run `work` on the main process and broadcast its picklable result; every process must call it.

    Raises:
        UserError: that of the main process, on all processes.
    """
    if world_size() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    broadcast: list[Any] = [None, None]  # result, error message
    if rank() == 0:
        try:
            broadcast[0] = work()
        except UserError as error:
            broadcast[1] = str(error)
    broadcast_object_list(broadcast)
    if broadcast[1] is not None:
        raise UserError(broadcast[1])
    result: Result = broadcast[0]
    return result


@contextmanager
def open_run(config: Config, stage: str, inputs: Iterable[str | Path], root: str | Path) -> Iterator[runs.Run]:
    """`runs.Run.open` on the main process; the other processes get the same folder without its lock, for reading."""
    opened: list[runs.Run] = []
    on_main(lambda: opened.append(runs.Run.open(config, stage, inputs, root)))
    with opened[0] if opened else runs.Run(runs.folder(config, stage, root), stage, config, None, None) as run:
        yield run


def print_once(text: str) -> None:
    """Print on the main process only."""
    if rank() == 0:
        print(text, flush=True)
