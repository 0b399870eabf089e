"""trees.jsonl on disk: appended in the order in which searches finish, put into the seed questions' order at the end.

Trees are read one at a time by their place in the file, so memory stays flat however many there are. Each line begins with
its id, which is all that is read of a line to find its place.
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
LONGEST_ID = 4000  # bytes of a line that are read for its id


def places(path: Path) -> dict[str, int]:
    """Byte offset of every tree in the file, by id."""
    found: dict[str, int] = {}
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            found[_id(line, path)] = offset
            offset += len(line)
    return found


def read(path: Path, ids: Sequence[str]) -> Iterator[Tree]:
    """The trees of `ids` that the file holds, in the order of `ids`. UserError for a damaged one (names it)."""
    for item in _items(path, ids):
        try:
            tree = Tree.from_dict(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, tree {item.get('id')!r} is damaged ({error!r}); delete its line and run `make mcts` again"
            ) from error
        yield tree


def put_in_order(path: Path, ids: Sequence[str]) -> None:
    """Rewrite the file (aside, then renamed) so that its trees stand in the order of `ids`."""
    write_jsonl(path, _items(path, ids))


def _items(path: Path, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    where = places(path)
    with path.open("rb") as lines:
        for tree_id in ids:
            if tree_id in where:
                lines.seek(where[tree_id])
                yield dict(json.loads(lines.readline()))


def _id(line: bytes, path: Path) -> str:
    if not line.startswith(KEY):
        raise UserError(f"{path} holds a line that does not begin with an id; delete it and run `make mcts` again")
    beginning = line[len(KEY) : len(KEY) + LONGEST_ID].decode("utf-8", errors="ignore")
    found, _ = json.JSONDecoder().raw_decode(beginning)
    return str(found)
