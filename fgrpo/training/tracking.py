"""Experiment trackers for SFT and RL: `report_to: none | tensorboard | trackio | wandb`, through transformers' callbacks.

One tracked run per run folder, however often the stage resumes: its id lies in the folder (`wandb_id`, `trackio_id`).
TensorBoard writes to `tensorboard/` of the folder; Trackio to its own local store, which `trackio show` opens. Without a key
(WANDB_API_KEY, or the one that `wandb login` wrote to .netrc) a Weights & Biases run is stored offline in the run folder, and
`wandb sync` uploads it later.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fgrpo.errors import UserError
from fgrpo.schema_base import Tracker
from fgrpo.training import distributed

if TYPE_CHECKING:
    from transformers import Trainer

PROJECT = "faithful-grpo"
TENSORBOARD = "tensorboard"  # the folder of its files


def check_tracker(tracker: Tracker, key: str) -> None:
    """Refuse a tracker that is not installed.

    Args:
        key: its configuration key, for the message.

    Raises:
        UserError: the package is missing.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"{key} is {tracker}, which is not installed; run `pip install {tracker}`, or set {key}=none "
            "(metrics.jsonl is written in any case)"
        )


@contextmanager
def tracked(
    trainer: Trainer, tracker: Tracker, name: str, folder: Path, settings: dict[str, Any]
) -> Iterator[str | None]:
    """Send what `trainer` logs in the block to the tracker, from the main process alone.

    Args:
        name: of the run; Trackio's gets the first characters of the id as well.
        folder: the run folder.
        settings: the configuration without keys, which Weights & Biases shows.

    Yields:
        The id of the tracked run; None for TensorBoard, no tracker and other processes.
    """
    if tracker == "none" or distributed.rank() != 0:
        yield None
    elif tracker == "wandb":
        with _weights_and_biases(trainer, name, folder, settings) as run_id:
            yield run_id
    elif tracker == "trackio":
        from transformers.integrations import TrackioCallback

        run_id = _run_id(folder / "trackio_id")
        trainer.args.project, trainer.args.run_name = PROJECT, f"{name}-{run_id[:6]}"
        trainer.add_callback(TrackioCallback())
        yield run_id
    else:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder / TENSORBOARD))))
        yield None


@contextmanager
def _weights_and_biases(trainer: Trainer, name: str, folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    import wandb
    from transformers.integrations import WandbCallback

    if not _has_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    run_id = _run_id(folder / "wandb_id")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        config=settings,
    )
    trainer.add_callback(WandbCallback())  # logs into the open run
    succeeded = False
    try:
        yield run_id
        succeeded = True
    finally:
        run.finish(exit_code=0 if succeeded else 1)


def _has_key() -> bool:
    """Whether wandb would find a key without a prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(file: Path) -> str:
    """The id in `file`; a new one is written there if it has none."""
    if file.exists() and (known := file.read_text(encoding="utf-8").strip()):
        return known
    new = secrets.token_hex(4)
    part = file.with_name(file.name + ".part")
    part.write_text(new + "\n", encoding="utf-8")
    part.replace(file)
    return new
