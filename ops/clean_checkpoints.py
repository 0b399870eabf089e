"""Frees disk: deletes the checkpoints of finished training stages, and lists superseded folders with their sizes.

A finished stage does not need its checkpoints: they are no output, and deleting them repeats nothing. Without them the run
cannot be extended, and its intermediate checkpoints cannot be evaluated (`<model>@<step>`). Superseded folders stay.

Command: `python -m ops.clean_checkpoints --preset mini [--list]` (`make clean-checkpoints`).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.resume import CHECKPOINTS, SUPERSEDED
from fgrpo.runs import DONE, folder, held
from fgrpo.schema import Config


def clean(config: Config, root: str | Path = "runs", *, only_list: bool = False) -> dict[Path, int]:
    """Delete the checkpoints of every finished stage of the preset; returns {folder: bytes}.

    Raises:
        UserError: a process is working on one of the stages.
    """
    freed: dict[Path, int] = {}
    for checkpoints in sorted(folder(config, "", root).glob(f"*/{CHECKPOINTS}")):
        stage = checkpoints.parent
        if only_list and (stage / DONE).exists():
            freed[checkpoints] = size(checkpoints)
        elif (stage / DONE).exists():
            with held(stage):
                if not (stage / DONE).exists():  # extended in the meantime
                    continue
                freed[checkpoints] = size(checkpoints)
                _delete(checkpoints)
    return freed


def _delete(checkpoints: Path) -> None:
    """Delete a folder; of a link, what it points to and then the link."""
    if checkpoints.is_symlink():
        shutil.rmtree(checkpoints.resolve(), ignore_errors=not checkpoints.exists())
        checkpoints.unlink()
    else:
        shutil.rmtree(checkpoints)


def superseded(config: Config, root: str | Path = "runs") -> dict[Path, int]:
    """{superseded folder: bytes} of the preset, in order of names."""
    return {path: size(path) for path in sorted(folder(config, "", root).glob(f"**/{SUPERSEDED}/*"))}


def size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        verb = "holds" if args.list else "freed"
        freed = clean(config, args.runs, only_list=args.list)
        for path, count in freed.items():
            print(f"{verb} {count / 1e6:,.1f} MB: {path}")
        print(f"{len(freed)} finished stages with checkpoints, {sum(freed.values()) / 1e6:,.1f} MB in total")
        for path, count in superseded(config, args.runs).items():
            print(f"superseded, {count / 1e6:,.1f} MB: {path} (delete it by hand if you do not need it)")

    arguments = parser("delete the checkpoints of finished stages; list superseded run folders")
    arguments.add_argument("--list", action="store_true", help="delete nothing")
    run(body, arguments)


if __name__ == "__main__":
    main()
