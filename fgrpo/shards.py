"""One stage over many machines: `--shard 3/8` does every eighth item, starting with the third, in its own folder.

Stages with independent items (difficulty rollouts, tree search, benchmark answers) store their expensive results in one
jsonl file, one item per line. A shard writes such a file in `runs/<preset>/<stage>-parts/…/3-of-8/`. The stage without
`--shard`, run afterwards, merges the shards of the same configuration and inputs, does what is missing (a shard that died,
an item that failed), and writes its final files in the order of the items. They are byte-equal to those of an unsharded run
if the engine honours seeds. Items are split as in `datasets.Dataset.shard(n, i, contiguous=False)`, so that every source is
in every shard.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_items
from fgrpo.runs import Run, held, same_identity, verify
from fgrpo.sealed import read_sealed

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Shard `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard of a text such as "3/8".

        Raises:
            UserError: another form of text.
        """
        numbers = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not numbers or not 1 <= int(numbers.group(1)) <= int(numbers.group(2)):
            raise UserError(f"cannot read the shard {text!r}; write 1/8 for the first of eight, up to 8/8")
        return cls(int(numbers.group(1)), int(numbers.group(2)))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def take(self, items: Sequence[Item]) -> list[Item]:
        """This shard's items, in order."""
        return list(items[self.index - 1 :: self.count])


def add_option(arguments: argparse.ArgumentParser) -> None:
    """Add the option `--shard`."""
    arguments.add_argument(
        "--shard", metavar="I/N", help="do one shard of the items only; run without it afterwards to merge"
    )


def of(args: argparse.Namespace) -> Shard | None:
    """The shard named on the command line, None without one."""
    return Shard.parse(args.shard) if args.shard else None


def stage(name: str, shard: Shard | None) -> str:
    """The name of a stage's run folder: `mcts`, or `mcts-parts/3-of-8` for a shard."""
    return name if shard is None else f"{_parts(name)}/{shard}"


def _parts(name: str) -> str:
    first, *rest = name.split("/")
    return "/".join([f"{first}-parts", *rest])


def parts(run: Run) -> list[Path]:
    """Folders of this stage's shards that have its configuration and inputs."""
    base = run.path
    for _ in run.stage.split("/"):
        base = base.parent
    folders = sorted(
        (base / _parts(run.stage)).glob("*-of-*"), key=lambda path: [int(n) for n in path.name.split("-of-")]
    )
    return [path for path in folders if same_identity(path, run.path)]


def merged_ids(shard_run: Run, stage_folder: Path, name: str) -> set[str]:
    """Ids in the file `name` of the unsharded stage: items that a shard of the same stage can skip."""
    return read_ids(stage_folder / name) if same_identity(shard_run.path, stage_folder) else set()


def seconds(run: Run) -> float:
    """Wall-clock seconds of this stage's finished shards, summed.

    Raises:
        UserError: the manifest of a shard is damaged.
    """
    return round(sum(_seconds(path / "manifest.json") for path in parts(run) if (path / "done").exists()), 1)


def _seconds(manifest: Path) -> float:
    try:
        return float(read_sealed(manifest)["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{manifest} is damaged ({error!r}); delete {manifest.parent / 'done'}, then rerun that shard"
        ) from error


def gather(run: Run, name: str, keep: Callable[[dict[str, Any]], bool] = lambda item: True) -> int:
    """Append to the stage's file the items that only its shards hold; returns the number of added items.

    Args:
        name: a jsonl file of the stage and of its shards.
        keep: whether to take an item.

    Raises:
        UserError: a shard is still running.
    """
    folders = [path for path in parts(run) if (path / name).exists()]
    if not folders:
        return 0
    added = 0
    with run.append(name) as out:
        for item in _items(folders, name, run.stage):
            if item[out.key] not in out and keep(item):
                out.add(item)
                added += 1
    print(f"{run.path / name}: {added:,} items of {len(folders)} shards")
    return added


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(item["id"], str):
        raise TypeError("its id is no text")
    return item


def _items(folders: Sequence[Path], name: str, stage_name: str) -> Iterator[dict[str, Any]]:
    for path in folders:
        with held(path):
            verify(path / name, stage_name.split("/")[0])
            yield from read_items(path / name, _with_id, "item of this stage")
