"""Checkpoints on disk: which one to resume from, whether it is whole, and which ones to delete. Imports no torch.

A checkpoint `checkpoint-<step>` holds `checksums.json` with the hash of each of its files; it is whole if they all match.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.files import files_below
from fgrpo.hashing import Hashes, damage, describe_all
from fgrpo.runs import write_json

PREFIX = "checkpoint"
STATE = "trainer_state.json"
CHECKSUMS = "checksums.json"
PROCESSES = "processes.json"
REPLACED = ".replaced"  # the end of the name of a folder while its successor takes its place
MACHINE_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
)


class WrongCheckpoint(UserError, ValueError):
    """A checkpoint that is broken or does not belong to this run."""


def steps_in(folder: str | Path) -> dict[int, Path]:
    """{step: checkpoint folder}, in order of steps."""
    numbered = {p.name.removeprefix(f"{PREFIX}-"): p for p in Path(folder).glob(f"{PREFIX}-*") if p.is_dir()}
    return {step: numbered[str(step)] for step in sorted(int(name) for name in numbered if name.isdigit())}


def write_checksums(checkpoint: Path) -> None:
    """Record the hash of each file of a checkpoint; call it after the last file is written."""
    names = [file.relative_to(checkpoint).as_posix() for file in files_below(checkpoint) if file.name != CHECKSUMS]
    write_json(checkpoint / CHECKSUMS, describe_all(checkpoint, names, Hashes()))


def is_plain(checkpoint: Path) -> bool:
    """Whether a trainer of transformers or TRL wrote this checkpoint: it has none of our records."""
    return not any((checkpoint / name).exists() for name in (CHECKSUMS, PROCESSES))


def problem_of(checkpoint: Path, needed: Sequence[str] = (STATE,), plain: bool = False) -> str | None:
    """What is missing or damaged in a checkpoint; None if it is whole.

    Args:
        needed: files that it must have, in addition to those that it recorded.
        plain: accept one that transformers or TRL wrote, which records no checksums, if it has its last file.

    Raises:
        OSError: the machine's fault (no permission, a file system that is gone): it says nothing of the checkpoint.
    """
    if plain and is_plain(checkpoint):
        return None if (checkpoint / STATE).exists() else f"{STATE} is missing"
    try:
        recorded = dict(json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8")))
        hashes = Hashes()
        for name, record in recorded.items():
            if (problem := damage(checkpoint / name, record, hashes)) is not None:
                return f"{name} {problem}"
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        return f"{CHECKSUMS} is missing or damaged"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS} is missing or damaged"
    missing = [name for name in needed if name not in recorded]
    return f"{missing[0]} is missing" if missing else None


def last_checkpoint(
    folder: str | Path, needed: Sequence[str] = (STATE,), before: int | None = None, plain: bool = False
) -> Path | None:
    """The newest whole checkpoint of `folder`, None if there is none; damaged ones are named and skipped.

    Args:
        needed: files that a checkpoint must have.
        before: only checkpoints of steps before this one.
        plain: accept those of transformers and TRL.
    """
    for step, path in reversed(steps_in(folder).items()):
        if before is not None and step >= before:
            continue
        problem = problem_of(path, needed, plain)
        if problem is None:
            return path
        print(f"{path} is not used: {problem}", file=sys.stderr)
    return None


def resume_point(
    folder: str | Path, needed: Sequence[str] = (STATE,), before: int | None = None, plain: bool = False
) -> Path | None:
    """`last_checkpoint`, or None to train from the start if there are no checkpoints.

    Raises:
        WrongCheckpoint: there are checkpoints, and none is whole.
    """
    for old in Path(folder).glob(f"{PREFIX}-*{REPLACED}"):
        settle_replaced(old.with_name(old.name.removesuffix(REPLACED)))
    chosen = last_checkpoint(folder, needed, before, plain)
    candidates = [step for step in steps_in(folder) if before is None or step < before]
    if chosen is None and candidates:
        raise WrongCheckpoint(
            f"no checkpoint of {folder} is whole (see above); restore one, or delete that folder to train from step 0"
        )
    return chosen


def put_in_place(new: Path, folder: Path) -> None:
    """Rename the complete folder `new` to `folder`; what was there is deleted afterwards, so that a kill loses none of both."""
    old = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def settle_replaced(folder: Path) -> None:
    """After a kill in `put_in_place`: bring the old folder back if the new one is not in its place, else delete it."""
    old = folder.with_name(folder.name + REPLACED)
    if old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def rotate(folder: str | Path, step: int, limit: int | None, keep: str | Path | None = None) -> None:
    """Delete the oldest checkpoints up to `step`, by step, beyond the `limit` newest.

    Args:
        step: of the checkpoint that was just written; later ones stay until training reaches them.
        limit: None or 0 keeps all.
        keep: a checkpoint that always stays (the best one).
    """
    if not limit:
        return
    upto = [path for number, path in steps_in(folder).items() if number <= step]
    for path in upto[: max(len(upto) - limit, 0)]:
        if keep is None or path.name != Path(keep).name:
            shutil.rmtree(path)
