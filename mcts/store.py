"""trees.jsonl on disk: appended in the order in which searches finish, sorted by seed question at the end.

Trees are read one at a time by byte offset, so memory stays flat for any number of trees. Each line starts with its id, which
is the only part that is parsed to build the index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from mcts.tree import Tree

KEY = b'{"id": '
MAX_ID_BYTES = 4000  # bytes of a line that are decoded to read its id


def offsets(path: Path) -> dict[str, int]:
    """Byte offset of each tree in the file, by id.

    Raises:
        UserError: a line does not start with an id (names the line).
    """
    by_id: dict[str, int] = {}
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            by_id[_id(line, f"{path}, line {number}")] = offset
            offset += len(line)
    return by_id


def read(path: Path, ids: Sequence[str]) -> Iterator[Tree]:
    """The trees of `ids` that the file contains, in the order of `ids`.

    Raises:
        UserError: a tree is damaged (names the file and the tree).
    """
    for item in _items(path, ids):
        try:
            tree = Tree.from_dict(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: tree {item.get('id')!r} is damaged ({error!r}). Delete its line, then rerun `make mcts`"
            ) from error
        yield tree


def sort_by_ids(path: Path, ids: Sequence[str]) -> None:
    """Rewrite the file atomically with its trees in the order of `ids`; trees with other ids are dropped."""
    write_jsonl(path, _items(path, ids))


def _items(path: Path, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    offset_by_id = offsets(path)
    with path.open("rb") as lines:
        for tree_id in ids:
            if tree_id in offset_by_id:
                lines.seek(offset_by_id[tree_id])
                try:
                    item = dict(json.loads(lines.readline()))
                except (ValueError, TypeError, RecursionError) as error:
                    line = list(offset_by_id).index(tree_id) + 1
                    raise UserError(
                        f"{path}, line {line}: tree {tree_id!r} is not JSON ({error}). Delete that line, then rerun `make mcts`"
                    ) from error
                yield item


def _id(line: bytes, where: str) -> str:
    prefix = line[len(KEY) : len(KEY) + MAX_ID_BYTES].decode("utf-8", errors="ignore")
    try:
        tree_id = json.JSONDecoder().raw_decode(prefix)[0] if line.startswith(KEY) else None
    except (ValueError, RecursionError):
        tree_id = None
    if not isinstance(tree_id, str):
        raise UserError(f"{where} does not start with an id. Delete that line, then rerun `make mcts`")
    return tree_id
