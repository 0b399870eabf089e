"""One Weights & Biases run per run folder, however often it resumes: its id is stored in `wandb_id`.

transformers' callback logs into the open run. Without a key (WANDB_API_KEY, or the one that `wandb login` wrote to .netrc) the
run is stored offline in the run folder, and `wandb sync` uploads it later. Parts of an offline run that resumed are uploaded
under the same id.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fgrpo.inference.addresses import without_keys
from fgrpo.schema import Config
from fgrpo.training import distributed

ID = "wandb_id"
PROJECT = "faithful-grpo"


@contextmanager
def tracked(cfg: Config, folder: Path) -> Iterator[str | None]:
    """Track the block if rl.report_to is "wandb" and this is the main process; yields the run's id, else None."""
    if cfg.rl.report_to != "wandb" or distributed.rank() != 0:
        yield None
        return
    import wandb

    if not _has_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    run_id = _run_id(folder / ID)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=f"{cfg.preset}-{cfg.method}",
        id=run_id,
        resume="allow",
        dir=str(folder),
        config=without_keys(cfg),
    )
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
    from wandb.sdk.lib.runid import generate_id

    if file.exists() and (known := file.read_text(encoding="utf-8").strip()):
        return known
    new = str(generate_id())
    part = file.with_name(file.name + ".part")
    part.write_text(new + "\n", encoding="utf-8")
    part.replace(file)
    return new
