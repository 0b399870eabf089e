"""Files that survive a kill: atomic writes, and append-only jsonl files with one item per line.

A process that dies while it appends leaves at most one torn last line. `Appender` truncates that line before it appends, so
the item is done again and appears once. A torn line anywhere else is an error and is not skipped.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fgrpo.errors import UserError

Parsed = TypeVar("Parsed")


def read_jsonl(path: str | Path, *, torn_tail_ok: bool = True) -> Iterator[dict[str, Any]]:
    """Items of a jsonl file, in order.

    Args:
        torn_tail_ok: skip a last line without its newline, since its writer was killed.

    Raises:
        UserError: the file is missing, or a complete line is not a JSON object (names file and line).
    """
    for _, item in _numbered(Path(path), torn_tail_ok):
        yield item


def read_items(path: str | Path, parse: Callable[[dict[str, Any]], Parsed], what: str) -> Iterator[Parsed]:
    """What `parse` makes of each item of a jsonl file, in order.

    Args:
        what: "is no <what>" in the error.

    Raises:
        UserError: as `read_jsonl`, or `parse` raises KeyError, TypeError, ValueError or AttributeError (names file and line).
    """
    for number, item in _numbered(Path(path), torn_tail_ok=True):
        try:
            parsed = parse(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number} is no {what} ({error!r:.200}); delete that line, then rerun to resume"
            ) from error
        yield parsed


def _numbered(path: Path, torn_tail_ok: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, item) of a jsonl file; see `read_jsonl`."""
    if not path.exists():
        raise UserError(f"{path} is missing; delete the `done` file of the stage that writes it, then rerun that stage")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n") and torn_tail_ok:
                return
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number} is not JSON ({error}); delete that line, then rerun to resume"
                ) from error
            if not isinstance(item, dict):
                raise UserError(
                    f"{path}, line {number} holds a {type(item).__name__}, not an object; delete that line, then rerun to resume"
                )
            yield number, item


def read_ids(path: str | Path, key: str = "id") -> set[str]:
    """Ids already written to `path`; empty if the file does not exist yet.

    Raises:
        UserError: an item has no id, or as `read_jsonl`.
    """
    if not Path(path).exists():
        return set()
    ids = set()
    for number, item in _numbered(Path(path), torn_tail_ok=True):
        if not isinstance(item.get(key), str):
            raise UserError(f"{path}, line {number} has no {key!r}; delete that line, then rerun to resume")
        ids.add(item[key])
    return ids


class AtomicJsonl:
    """A jsonl file that is written item by item and renamed when the `with` block ends without an error."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __enter__(self) -> Self:
        self._out = _part(self._path).open("w", encoding="utf-8")
        return self

    def add(self, item: dict[str, Any]) -> None:
        """Write one item."""
        self._out.write(json_line(item) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        if kind is None:
            os.replace(_part(self._path), self._path)


def write_jsonl(path: str | Path, items: Iterable[dict[str, Any]]) -> int:
    """Write a jsonl file atomically; returns the number of items."""
    count = 0
    with AtomicJsonl(path) as out:
        for item in items:
            out.add(item)
            count += 1
    return count


def write_atomic(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically: to a temporary file in the same folder, synced, then renamed."""
    path = Path(path)
    part = _part(path)
    with part.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)


def json_line(item: Any) -> str:
    """One line of JSON.

    Raises:
        ValueError: NaN or infinity; None means "no value".
    """
    return json.dumps(item, ensure_ascii=False, allow_nan=False)


def files_below(folder: Path, pattern: str = "*") -> list[Path]:
    """Files at any depth below `folder` whose name matches `pattern`, sorted; links to folders are followed.

    A folder that several paths reach counts once, under a path without links if there is one. So a cycle of links ends, and a
    link to a folder that holds `folder` itself is not followed. A folder that does not exist has no files.
    """
    if not folder.is_dir():
        return []
    root = folder.resolve()
    seen: set[str] = set()
    files: list[Path] = []
    folders, links = [str(folder)], list[str]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(current)
        if real in seen or (real != str(root) and root.is_relative_to(real)):
            continue
        seen.add(real)
        for entry in sorted(os.scandir(current), key=lambda e: e.name):
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            elif entry.is_file() and fnmatch.fnmatchcase(entry.name, pattern):
                files.append(Path(entry.path))
    return sorted(files)


class Appender:
    """Appends items, flushes each to the kernel, and knows which ids the file already holds.

    Use it as a context manager. `id in appender` tells whether an item is present.
    """

    def __init__(self, path: str | Path, key: str = "id") -> None:
        self.path, self.key = Path(path), key
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_torn_tail(self.path)
        self._ids = read_ids(self.path, key)
        self._out = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, item: dict[str, Any]) -> None:
        """Append one item.

        Raises:
            ValueError: its id is already in the file.
        """
        item_id = item[self.key]
        if item_id in self._ids:
            raise ValueError(f"{self.path} already holds {item_id!r}")
        self._out.write(json_line(item) + "\n")
        self._out.flush()
        self._ids.add(item_id)

    def close(self) -> None:
        """Sync and close the file; a second call does nothing."""
        if not self._out.closed:
            self._out.flush()
            os.fsync(self._out.fileno())
            self._out.close()


def part_of_process(path: Path) -> Path:
    """The unfinished file of `path` where several processes may write it at once: it names host and process."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")


def remove_dead_parts(folder: Path, pattern: str = "**/*") -> int:
    """Delete unfinished files of `pattern` below `folder` whose process on this host is gone; returns their number."""
    mine = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)\.part$")
    removed = 0
    for part in folder.glob(f"{pattern}.part"):
        name = mine.search(part.name)
        if name is not None and not _is_alive(int(name.group(1))):
            part.unlink(missing_ok=True)
            removed += 1
    return removed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _truncate_torn_tail(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
