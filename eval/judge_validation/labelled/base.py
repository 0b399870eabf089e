"""Items with the labels that a perfect judge would give, and how a labelled set is loaded by name."""

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

_SHOWN = 3  # missing images that an error names


@dataclass(frozen=True)
class Labelled:
    """One item with its answer key: the true label of each verdict, and the kind of thing that each is an example of."""

    item: ConsistencyItem | GroundingItem
    truth: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        size = len(self.item.sentences) if isinstance(self.item, GroundingItem) else 1
        if not len(self.truth) == len(self.kinds) == size:
            raise ValueError(f"{self.item.id}: {size} verdicts, {len(self.truth)} labels, {len(self.kinds)} kinds")


@dataclass
class Loaded:
    """Items of a set, and the number of dropped things by reason."""

    items: list[Labelled] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)  # images that are not there


class Reader(Protocol):
    """`LABELLED` of a file of this package: reads a folder of the set, or its file of labels in the folder of the images.

    Raises:
        UserError: the file of labels is missing or broken (names it and its source).
    """

    def __call__(self, path: Path) -> Loaded: ...


def names() -> list[str]:
    """Names of the labelled sets."""
    return plugin_names("eval.judge_validation.labelled", "LABELLED")


def load(name: str, path: str | Path) -> Loaded:
    """The set `name` at `path`.

    Raises:
        UserError: no such set (names the nearest), nothing at `path`, or no usable item (gives the reasons).
    """
    reader: Reader = load_plugin("eval.judge_validation.labelled", name, "LABELLED", "labelled set")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}, the labelled set {name}, does not exist; give its path as {name}:PATH")
    loaded = reader(path)
    if not loaded.items:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in loaded.dropped.most_common()) or "it is empty"
        missing = f"; missing images: {', '.join(loaded.missing[:_SHOWN])}" if loaded.missing else ""
        raise UserError(
            f"{path} ({name}) has no usable item ({reasons}){missing}; the docstring of `{reader.__module__}` says what it needs"
        )
    return loaded


def labels_file(path: Path, name: str, source: str) -> Path:
    """`path` itself if it is a file, else `path`/`name`. UserError if that is missing (names `source`)."""
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
    """A set with one JSON object per line in the file `name`; `item` converts a row, or counts why it cannot."""
    file = labels_file(path, name, source)
    loaded = Loaded()
    for number, row in enumerate(rows(file)):
        if (labelled := item(row, number, file.parent, loaded)) is not None:
            loaded.items.append(labelled)
    return loaded


def find_image(loaded: Loaded, folder: Path, name: object, places: Iterable[str]) -> str | None:
    """The path of an image in one of `places` below `folder`; None (and counted) if it is in none."""
    if not isinstance(name, str) or not name:
        loaded.dropped["no image is named"] += 1
        return None
    for place in places:
        if (folder / place / name).is_file():
            return str(folder / place / name)
    loaded.dropped["the image is missing"] += 1
    loaded.missing.append(name)
    return None
