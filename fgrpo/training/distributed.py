"""What the processes of one training run must agree on: how they talk, who writes, what was decided.

Each process of a run (a rank) executes the same stage. Only the main one opens the run folder, decides from the disk and
writes; the others hear of it (`on_main`). DeepSpeed's files reach accelerate through its own environment variables, so that
a stage started by `fgrpo.training.launch`, by accelerate or by torchrun is the same run. Imports torch inside functions only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fgrpo import runs
from fgrpo.errors import UserError
from fgrpo.process_guard import end_with_parent
from fgrpo.schema import Config

Found = TypeVar("Found")


def world_size() -> int:
    """Processes of this run, as torchrun and accelerate announce them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def is_started() -> bool:
    """Whether a launcher has started this process (also as the only one)."""
    return "LOCAL_RANK" in os.environ


def trainer_arguments(deepspeed: str | None, timeout_s: int) -> dict[str, Any]:
    """What transformers' arguments must say about several processes; gloo carries them on a CPU.

    DeepSpeed's own file is not among them: accelerate reads it from the environment (`session`), since transformers cannot
    be told of a backend beside one.
    """
    import torch

    out: dict[str, Any] = {"ddp_timeout": timeout_s}
    if is_started() and not torch.cuda.is_available():
        out |= {"ddp_backend": "gloo", "use_cpu": deepspeed is None}
    return out


@contextmanager
def session(deepspeed: str | None, timeout_s: int) -> Iterator[None]:
    """The processes of one training run meet here, before anything else.

    Args:
        deepspeed: the DeepSpeed file of the configuration.
        timeout_s: how long they wait for one another before the run ends with an error.
    """
    if not is_started():
        yield
        return
    import torch
    from accelerate import PartialState

    end_with_parent()  # nobody is left waiting for processes that are gone
    kwargs: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s)}
    on_cpu = not torch.cuda.is_available()
    if deepspeed is not None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(Path(deepspeed).resolve())
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "true"
        # DeepSpeed calls functions of torch by their old names, and torch says so at each call of each process
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        if on_cpu:
            without_built_ops()
    else:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        if on_cpu:  # accelerate would call it cpu:0, a place that torch.load does not know when a run goes on
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._reset_state()  # of an earlier session in this process
    PartialState(cpu=on_cpu and deepspeed is None, backend="gloo" if on_cpu else None, **kwargs)
    yield
    PartialState().wait_for_everyone()


def without_built_ops() -> None:
    """On a CPU DeepSpeed would build a faster exchange between processes at its first use, which takes a compiler and two
    minutes; torch's own (gloo) does the same. `deepspeed.ops` says that edits to this table persist.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def on_main(work: Callable[[], Found]) -> Found:
    """What `work` returns on the main process, told to all; every process calls it. The result must be picklable.

    Raises:
        UserError: the main process' own, on all of them.
    """
    if world_size() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = work()
        except UserError as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    found: Found = told[0]
    return found


@contextmanager
def open_run(config: Config, stage: str, inputs: Iterable[str | Path], root: str | Path) -> Iterator[runs.Run]:
    """`runs.Run.open` on the main process; the others get the same folder, to be read only."""
    held: list[runs.Run] = []
    on_main(lambda: held.append(runs.Run.open(config, stage, inputs, root)))
    with held[0] if held else runs.Run(runs.folder(config, stage, root), stage, config, {}, None) as run:
        yield run


def say(text: str) -> None:
    """Print, once a run."""
    if rank() == 0:
        print(text, flush=True)
