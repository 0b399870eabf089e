"""Frees disk: deletes what finished training stages no longer need, and lists superseded folders with their sizes.

A finished stage does not need its checkpoints: they are not outputs, and nothing has to be repeated once they are deleted. Without them the run
cannot be extended, and its intermediate checkpoints cannot be evaluated (`<model>@<step>`). Nor does the anchor stage need the
model from which it started; `ops.focus_mass` makes it again from the SFT model. Superseded folders stay.

Command: `python -m ops.clean_checkpoints --preset mini [--list]` (`make clean-checkpoints`).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.resume import CHECKPOINTS, FRESH, SUPERSEDED
from fgrpo.runs import DONE, folder, held
from fgrpo.schema import Config


def clean(config: Config, root: str | Path = "runs", *, only_list: bool = False) -> dict[Path, int]:
    """Delete the checkpoints of every finished stage of the preset, and the anchor stage's start; returns {folder: bytes}.

    Raises:
        UserError: a process is working on one of the stages.
    """
    freed: dict[Path, int] = {}
    of_preset = folder(config, "", root)
    for path in sorted([*of_preset.glob(f"*/{CHECKPOINTS}"), *of_preset.glob(f"anchor/{FRESH}")]):
        stage = path.parent
        if only_list and (stage / DONE).exists():
            freed[path] = size(path)
        elif (stage / DONE).exists():
            with held(stage):
                if not (stage / DONE).exists():  # extended in the meantime
                    continue
                freed[path] = size(path)
                _delete(path)
    return freed


def _delete(path: Path) -> None:
    """Delete a folder; of a link, what it points to and then the link."""
    if path.is_symlink():
        shutil.rmtree(path.resolve(), ignore_errors=not path.exists())
        path.unlink()
    else:
        shutil.rmtree(path)


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
        print(f"{len(freed)} folders of finished stages, {sum(freed.values()) / 1e6:,.1f} MB in total")
        for path, count in superseded(config, args.runs).items():
            print(f"superseded, {count / 1e6:,.1f} MB: {path} (delete it by hand if you do not need it)")

    arguments = parser("delete the checkpoints of finished stages; list superseded run folders")
    arguments.add_argument("--list", action="store_true", help="delete nothing")
    run(body, arguments)


if __name__ == "__main__":
    main()
