"""One stage over many machines: `--shard 3/8` does every eighth item, from the third on, into a folder of its own.

Stages whose items are independent (difficulty rollouts, tree search, answers to benchmarks) keep their expensive results in
one jsonl file, an item a line. A shard writes such a file in `runs/<preset>/<stage>-parts/…/3-of-8/`; the stage without
`--shard`, run afterwards, takes over what the parts of the same configuration and inputs hold, does what is missing (a shard
that died, an item that failed), and writes its final files in the items' own order: byte-equal to an undivided run's where
the engine honours seeds. Items are split as `datasets.Dataset.shard(n, i, contiguous=False)` does, so that every source is in
every shard.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_jsonl
from fgrpo.runs import Run, held, same_identity

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that "3/8" means.

        Raises:
            UserError: something else.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not 1 <= int(found.group(1)) <= int(found.group(2)):
            raise UserError(f"cannot read the shard {text!r}; write 1/8 for the first of eight, up to 8/8")
        return cls(int(found.group(1)), int(found.group(2)))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def take(self, items: Sequence[Item]) -> list[Item]:
        """This shard's items, in order."""
        return list(items[self.index - 1 :: self.count])


def add_option(arguments: argparse.ArgumentParser) -> None:
    """The option `--shard`."""
    arguments.add_argument(
        "--shard", metavar="I/N", help="do a part of the items only; run without it afterwards to merge"
    )


def of(args: argparse.Namespace) -> Shard | None:
    """The shard that the command line names."""
    return Shard.parse(args.shard) if args.shard else None


def stage(name: str, shard: Shard | None) -> str:
    """The name of a stage's run folder: `mcts`, or `mcts-parts/3-of-8` of a shard."""
    return name if shard is None else f"{_parts(name)}/{shard}"


def _parts(name: str) -> str:
    first, *rest = name.split("/")
    return "/".join([f"{first}-parts", *rest])


def parts(run: Run) -> list[Path]:
    """Folders of this stage's shards that have its configuration and inputs."""
    base = run.path
    for _ in run.stage.split("/"):
        base = base.parent
    found = sorted(
        (base / _parts(run.stage)).glob("*-of-*"), key=lambda path: [int(n) for n in path.name.split("-of-")]
    )
    return [path for path in found if same_identity(path, run.path)]


def of_whole(part: Run, whole: Path, name: str) -> set[str]:
    """Ids in a file of the undivided stage, whose folder `whole` is: what a part of the same stage need not do again."""
    return read_ids(whole / name) if same_identity(part.path, whole) else set()


def seconds(run: Run) -> float:
    """What this stage's finished parts have taken, added up."""
    done = [path / "manifest.json" for path in parts(run) if (path / "done").exists()]
    return round(sum(float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in done), 1)


def gather(run: Run, name: str, keep: Callable[[dict[str, Any]], bool] = lambda item: True) -> int:
    """Add to the stage's file what its shards hold and it does not; returns how many items that were.

    Args:
        name: a jsonl file, of the stage and of its shards.
        keep: which items count.

    Raises:
        UserError: a shard is still at work.
    """
    folders = [path for path in parts(run) if (path / name).exists()]
    if not folders:
        return 0
    added = 0
    with run.append(name) as out:
        for item in _items(folders, name):
            if item[out.key] not in out and keep(item):
                out.add(item)
                added += 1
    print(f"{run.path / name}: {added:,} items of {len(folders)} shards")
    return added


def _items(folders: Sequence[Path], name: str) -> Iterator[dict[str, Any]]:
    for path in folders:
        with held(path):
            yield from read_jsonl(path / name)
