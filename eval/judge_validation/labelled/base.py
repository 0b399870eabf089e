"""Items with the labels that a perfect judge would give, and how a labelled set is found and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.plugins import load_plugin, plugin_names
from rewards.consistency import ConsistencyItem
from rewards.semantic_grounding import GroundingItem

_SETS = ("eval.judge_validation.labelled", "LABELLED")
_SHOWN = 3  # missing pictures that an error names


@dataclass(frozen=True)
class Labelled:
    """One item with its answer key: `truth` has a label for each verdict on it, `kinds` says what each is an example of."""

    item: ConsistencyItem | GroundingItem
    truth: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        size = len(self.item.sentences) if isinstance(self.item, GroundingItem) else 1
        if not len(self.truth) == len(self.kinds) == size:
            raise ValueError(f"{self.item.id}: {size} verdicts, {len(self.truth)} labels, {len(self.kinds)} kinds")


@dataclass
class Loaded:
    """What was read: items, and how many things were left out, by reason."""

    items: list[Labelled] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)  # pictures that are not there


class Reader(Protocol):
    """`LABELLED` of a file of judges/labelled: reads a folder of the set (or its file of labels, beside the pictures).

    Raises:
        UserError: the file of labels is missing or broken (names it, and where it is had).
    """

    def __call__(self, path: Path) -> Loaded: ...


def names() -> list[str]:
    """The labelled sets there are."""
    return plugin_names(*_SETS)


def load(name: str, path: str | Path) -> Loaded:
    """The set `name` that lies at `path`.

    Raises:
        UserError: no such set (names the nearest), nothing at `path`, or nothing of it can be used (says why).
    """
    reader: Reader = load_plugin(_SETS[0], name, _SETS[1], "labelled set")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}, the labelled set {name}, is not there")
    found = reader(path)
    if not found.items:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in found.dropped.most_common()) or "it is empty"
        gone = f"; pictures such as {', '.join(found.missing[:_SHOWN])}" if found.missing else ""
        raise UserError(
            f"nothing of {path} ({name}) can be used ({reasons}){gone}; `{reader.__module__}` says what it needs"
        )
    return found


def labels_file(path: Path, name: str, source: str) -> Path:
    """`path` itself if it is a file, else `path`/`name`. UserError if that is missing; `source` says where it is had."""
    file = path if path.is_file() else path / name
    if not file.is_file():
        raise UserError(f"{file} is missing; it is part of {source}")
    return file


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a jsonl file; its last line may lack its end."""
    yield from read_jsonl(file, torn_tail_ok=False)


def read_lines(
    path: Path, name: str, source: str, item: Callable[[dict[str, Any], int, Path, Loaded], Labelled | None]
) -> Loaded:
    """A set that is one JSON object a line in the file `name`; `item` makes one of a row, or counts why it does not."""
    file = labels_file(path, name, source)
    found = Loaded()
    for number, row in enumerate(rows(file)):
        if (one := item(row, number, file.parent, found)) is not None:
            found.items.append(one)
    return found


def picture(found: Loaded, folder: Path, name: object, places: Iterable[str]) -> str | None:
    """The path of a picture, looked for in `places` below `folder`; None (and counted) if it is in none."""
    if not isinstance(name, str) or not name:
        found.dropped["no picture is named"] += 1
        return None
    for place in places:
        if (folder / place / name).is_file():
            return str(folder / place / name)
    found.dropped["the picture is missing"] += 1
    found.missing.append(name)
    return None
