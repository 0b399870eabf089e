"""What a stage does with a run folder that another configuration wrote: resume, refuse, or start anew (docs/runs.md).

No folder with checkpoints or paid work is moved without being asked for. Changes that the folder resumed with are recorded in
`changes.json` and in the manifest.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.files import write_atomic
from fgrpo.identity import FILE as IDENTITY
from fgrpo.identity import Change, Identity
from fgrpo.key_kinds import Kind
from fgrpo.schema import Config

CHANGES = "changes.json"
SUPERSEDED = ".superseded"
CHECKPOINTS = "checkpoints"
FRESH = "start"  # of the anchor stage: the SFT model with the untrained token, which can be made again
_BOOKKEEPING = frozenset(  # files that are no work: written before it, or about it
    {IDENTITY, CHANGES, "manifest.json", "done", "scoring.json", "metrics.jsonl", "questions.jsonl"}
)
JUDGE_REPLIES, LEDGER = "judge_replies.sqlite", "spend.jsonl"  # of a run that pays for requests
_CHEAP_STAGES = ("world",)  # written again within a minute
_RESTART, _RESUME = "restart", "resume"


def needs_work(changes: Sequence[Change]) -> bool:
    """Whether a finished folder with these changes has work left: it is of another experiment, or training was extended."""
    return any(change.kind in (Kind.EXPERIMENT, Kind.LENGTH) for change in changes)


def settle(path: Path, stage: str, config: Config, new: Identity) -> None:
    """Make the folder `path` ready for `new`: keep it and record what changed, or move it to `.superseded`.

    Raises:
        UserError: it holds work of another experiment, or work whose experiment is unknown.
    """
    if not path.exists() or not any(path.iterdir()):
        return
    old, is_done = Identity.read(path), (path / "done").exists()
    if old is None:
        _settle_unknown(path, stage, config)
        return
    changes = old.changes(new)
    if any(change.kind is Kind.EXPERIMENT for change in changes):
        _settle_other_experiment(path, stage, config, changes, is_done)
    elif is_done:
        if any(change.kind is Kind.LENGTH for change in changes):
            _extend(path, changes)
    elif changes:
        record(path, changes)


def recorded_changes(path: Path) -> list[dict[str, Any]]:
    """The changes that a folder resumed with, in order."""
    try:
        return list(json.loads((path / CHANGES).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # none, or damaged
        return []


def is_training(stage: str) -> bool:
    """Whether a stage trains: its work is in checkpoints."""
    return stage in ("sft", "anchor") or stage.startswith("rl-")


def has_checkpoints(path: Path) -> bool:
    """Whether a run folder has checkpoints."""
    return any((path / CHECKPOINTS).glob("checkpoint-*"))


def holds_work(path: Path, stage: str) -> bool:
    """Whether an unfinished folder holds checkpoints or items that a rerun would keep."""
    if stage in _CHEAP_STAGES:
        return False
    if is_training(stage):
        ledger = path / LEDGER
        has_spent = ledger.is_file() and ledger.stat().st_size > 0
        return has_checkpoints(path) or (path / "final").exists() or has_spent or _has_replies(path / JUDGE_REPLIES)
    files = (p for p in path.rglob("*") if p.is_file() and p.name not in _BOOKKEEPING and p.suffix != ".part")
    return any(p.stat().st_size > 0 for p in files)


def _has_replies(file: Path) -> bool:
    """Whether a file of judge replies holds any; one that cannot be read counts as work."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as replies:
            return replies.execute("SELECT 1 FROM replies LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return True


def supersede(path: Path, stage: str) -> Path:
    """Move a run folder to `.superseded` beside it, under a free name."""
    old = path.parent / SUPERSEDED
    old.mkdir(exist_ok=True)
    number = 0
    while os.path.lexists(target := old / f"{stage.replace('/', '-')}.{number}"):
        number += 1
    if path.is_symlink():  # a relative one would point elsewhere
        target.symlink_to(path.resolve(), target_is_directory=True)
        path.unlink()
    else:
        path.rename(target)
    print(f"{path} belongs to another configuration or other inputs; moved to {target}")
    return target


def _settle_unknown(path: Path, stage: str, config: Config) -> None:
    """A folder without a readable identity."""
    if not holds_work(path, stage) or config.changed.unfinished == _RESTART:
        supersede(path, stage)
    elif config.changed.unfinished == _RESUME:
        record(path, [Change(IDENTITY, None, "(accepted)", Kind.EXPERIMENT)])
    else:
        raise UserError(
            f"{path / IDENTITY} is missing, empty or damaged, so it is unknown which configuration the work in {path} belongs "
            f"to. Restore that file, or {_ways(path)}"
        )


def _settle_other_experiment(path: Path, stage: str, config: Config, changes: Sequence[Change], is_done: bool) -> None:
    if not is_done and holds_work(path, stage) and config.changed.unfinished == _RESUME:
        print(f"{path} resumes as another experiment: {_listed(changes)}")
        record(path, changes)
        return
    chosen = config.changed.finished if is_done else config.changed.unfinished
    if chosen == _RESTART or (not is_done and not holds_work(path, stage)):
        print(f"{path}: {_listed(changes)}")
        supersede(path, stage)
        return
    state = "is finished" if is_done else "holds unfinished work"
    raise UserError(
        f"{path} {state} and belongs to another experiment: {_listed(changes)}. {_new_name(stage, config)}; or "
        f"{_ways(path, is_done)}"
    )


def _new_name(stage: str, config: Config) -> str:
    if stage.startswith("rl-"):
        return (
            f"Give this run its own name: put the change into configs/method/<name>.yaml (with `extends: {config.method}`), "
            "then `make rl-<name>`"
        )
    return (
        "Give this run its own name: another folder of runs (--runs, RUNS=), with the unchanged stages linked into it"
    )


def _ways(path: Path, is_done: bool = False) -> str:
    restart = f"(moves it to {path.parent / SUPERSEDED} and starts anew)"
    if is_done:
        return f"set changed.finished=restart {restart}"
    return (
        "set changed.unfinished=resume (continues this folder and records the change in its manifest) or "
        f"changed.unfinished=restart {restart}"
    )


def _extend(path: Path, changes: Sequence[Change]) -> None:
    """Reopen a finished training run for more steps."""
    if not has_checkpoints(path):
        raise UserError(
            f"{path} is finished and its checkpoints are deleted, so it cannot be extended ({_listed(changes)}); "
            "undo that change, or train under another name"
        )
    record(path, changes)
    (path / "done").unlink(missing_ok=True)


def record(path: Path, changes: Sequence[Change]) -> None:
    """Add `changes` to those that a folder resumed with, and print them."""
    if not changes:
        return
    at = time.strftime("%Y-%m-%dT%H:%M:%S")
    entries = recorded_changes(path) + [{**change.to_dict(), "at": at} for change in changes]
    write_atomic(path / CHANGES, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    print(f"{path} resumes with {_listed(changes)}")


def _listed(changes: Sequence[Change]) -> str:
    shown = [str(change) for change in changes if change.kind in (Kind.EXPERIMENT, Kind.LENGTH)] or list(
        map(str, changes)
    )
    return ", ".join(shown[:6]) + (f", and {len(shown) - 6} more" if len(shown) > 6 else "")
