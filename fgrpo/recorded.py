"""A list of files with their hashes (`files.jsonl`), and the check of the files that a stage is about to read.

For files that are in no manifest: the miniature world's data, and the images that rows of the training data name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.files import read_items, write_jsonl
from fgrpo.hashing import Hashes, damage, describe

LIST = "files.jsonl"
IMAGES = "images.jsonl"  # in the folder of the data stage


def write(path: Path, root: Path, names: Iterable[str], hashes: Hashes) -> None:
    """Write the list `path` of the files `names`, which are absolute or below `root`."""
    write_jsonl(path, ({"id": name, **describe(root / name, hashes)} for name in names))


def damaged(
    path: Path, root: Path, hashes: Hashes, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
    """{file of the list `path`: how it differs}; only names that are `wanted` are compared.

    Raises:
        UserError: the list is damaged.
    """
    found = {
        row["id"]: damage(root / row["id"], row, hashes)
        for row in read_items(path, _entry, "entry of a file")
        if wanted(row["id"])
    }
    return {name: problem for name, problem in found.items() if problem is not None}


def check(path: Path, root: Path, hashes: Hashes, wanted: Callable[[str], bool], remedy: str) -> None:
    """Compare the `wanted` files with the list `path`, if there is one.

    Args:
        remedy: what to do, for the error.

    Raises:
        UserError: a file is missing or changed, or the list is damaged.
    """
    if not path.is_file():
        return
    found = damaged(path, root, hashes, wanted)
    if found:
        name, problem = next(iter(found.items()))
        more = f" ({len(found) - 1} more are damaged)" if len(found) > 1 else ""
        raise UserError(
            f"{root / name} is not what was written: it {problem}{more}. {remedy}; if it was changed on purpose, delete {path}"
        )


def check_images(data: Path, paths: Iterable[str]) -> None:
    """Compare images of the seed questions or the RL set with the list that the data stage wrote into its folder `data`.

    Raises:
        UserError: an image is missing or changed, or the list is damaged.
    """
    hashes = Hashes(data.parent)
    check(data / IMAGES, Path(), hashes, set(paths).__contains__, "Restore it from a copy")
    hashes.save()


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(row["id"], str) or not isinstance(row["hash"], str):
        raise TypeError("its name or its hash is no text")
    return {**row, "bytes": int(row["bytes"])}
