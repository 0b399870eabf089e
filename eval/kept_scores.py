"""Scores of other judges in one folder: kept in `scored/<identity>/`, and brought back when the same judges score again.

A folder's own scores.jsonl, verdicts.jsonl and summary.json are those of its present judges. Scores are paid for, so no change
of a judge, prompt or reward deletes them. A killed move is completed by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.hashing import Hashes, damage, describe_all
from fgrpo.sealed import read_sealed, write_sealed

FOLDER = "scored"
FILES = ("scores.jsonl", "verdicts.jsonl", "summary.json")
HASHES = "hashes.json"  # of the kept files
UNKNOWN = "unknown"  # scores without a record of their judges


def place(folder: Path, identity: Mapping[str, Any] | None) -> Path:
    """Where `folder` keeps the scores that depend on `identity` (plain JSON); None: it is not known."""
    if identity is None:
        return folder / FOLDER / UNKNOWN
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return folder / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:12]


def put_away(folder: Path, identity: Mapping[str, Any] | None) -> None:
    """Move the scores of `folder`, which depend on `identity`, into their place; nothing there is overwritten."""
    present = [name for name in FILES if (folder / name).exists()]
    if not present:
        return
    target, number = place(folder, identity), 0
    free = target
    while any((free / name).exists() for name in present):
        number += 1
        free = target.with_name(f"{target.name}.{number}")
    free.mkdir(parents=True, exist_ok=True)
    known = _known(free)  # of a killed move
    write_sealed(free / HASHES, {**known, **describe_all(folder, present, Hashes())})
    for name in present:
        os.replace(folder / name, free / name)
    print(f"{folder}: the scores of other judges, prompts or rewards are kept in {free}")


def _known(kept: Path) -> dict[str, Any]:
    """The hashes of the files kept in a folder; none where nothing is recorded. UserError: the record is damaged."""
    try:
        return read_sealed(kept / HASHES) if (kept / HASHES).exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{kept / HASHES} is damaged ({error}), so the files beside it cannot be checked; delete it to accept them as they are"
        ) from error


def bring_back(folder: Path, identity: Mapping[str, Any]) -> None:
    """Move the scores that depend on `identity` back into `folder`, where it has none of its own.

    Raises:
        UserError: one of them is damaged.
    """
    kept = place(folder, identity)
    for name in FILES:
        if (kept / name).exists() and not (folder / name).exists():
            _check(kept, name)
            os.replace(kept / name, folder / name)
    if kept.is_dir() and not any(path.name != HASHES for path in kept.iterdir()):
        (kept / HASHES).unlink(missing_ok=True)
        kept.rmdir()


def _check(kept: Path, name: str) -> None:
    """UserError if a kept file differs from its record. Scores that an older version kept have none."""
    if not (known := _known(kept)):
        return
    try:
        problem = damage(kept / name, known[name], Hashes())
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{kept / HASHES} is damaged ({error!r}), so {kept / name} cannot be checked; delete it to accept that file as it is"
        ) from error
    if problem is not None:
        raise UserError(
            f"{kept / name} is not what was kept there: it {problem}. Restore it from a copy, or move {kept} away and rerun to "
            "judge the stored answers again"
        )
