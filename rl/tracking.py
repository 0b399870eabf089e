"""One Weights & Biases run for one run folder, however often it is gone on with: its id is kept in `wandb_id`.

transformers' callback logs into the run that is open. Without a key (WANDB_API_KEY, or what `wandb login` left in .netrc) the
run is kept on this machine (offline) below the run folder, and `wandb sync` sends it later; parts of an offline run that went
on are sent under the one id.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fgrpo.schema import Config
from fgrpo.training import distributed

ID = "wandb_id"
PROJECT = "faithful-grpo"


@contextmanager
def tracked(cfg: Config, folder: Path) -> Iterator[str | None]:
    """Track what happens inside, if rl.report_to says so and this is the main process; gives the run's id."""
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
        config=cfg.model_dump(mode="json"),
    )
    ended_well = False
    try:
        yield run_id
        ended_well = True
    finally:
        run.finish(exit_code=0 if ended_well else 1)


def _has_key() -> bool:
    """Whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(file: Path) -> str:
    """The id in `file`; a new one is written there."""
    from wandb.sdk.lib.runid import generate_id

    if file.exists() and (known := file.read_text(encoding="utf-8").strip()):
        return known
    made = str(generate_id())
    aside = file.with_name(file.name + ".part")
    aside.write_text(made + "\n", encoding="utf-8")
    aside.replace(file)
    return made
