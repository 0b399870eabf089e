"""What a data source is, and what all of them share: counted drops, streamed parquet, checked pictures, tidy boxes.

A source is one module of `data_curation.sources` that exposes `SOURCE`; nothing has to be registered. Whatever is wrong
with a record drops that record under a reason; whatever is wrong with a whole file is a `UserError`. Appendix A.3.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.types import Box, Sample

STREAM_ROWS = 64  # rows decoded at a time
STREAM_BYTES = 1 << 20  # read-ahead a column; without it a whole row group (5.2 GB in SAT) is read at once
ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF
TAIL_BYTES = 4096  # in which a whole picture ends; cameras and programs append bytes of their own, and inside a scan no end can stand
MIN_INSIDE = 0.5  # a box of which less than this share lies inside its picture is dropped


@dataclass
class Tally:
    """What became of a source's records: `dropped` by reason; `notes` count repairs inside records that stay."""

    records: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {"records": self.records, "kept": self.kept, "dropped": dict(self.dropped), "notes": dict(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        return cls(data["records"], data["kept"], Counter(data["dropped"]), Counter(data["notes"]))


class Drop(Exception):
    """Raised inside a source for a record that cannot be used; `str(drop)` is the reason it is counted under."""


@dataclass(frozen=True)
class Context:
    """What a source reads with.

    Attributes:
        folder: the data set's folder below `<data.root>/train`.
        images: where pictures that lie inside rows are written out, once.
        seed: decides option orders and distractors, with the record's id.
        choices: options a free-form answer gets, the true one included.
        tally: counts every record.
    """

    folder: Path
    images: Path
    seed: int
    choices: int
    tally: Tally


@dataclass(frozen=True)
class Source:
    """A training data set.

    Attributes:
        name: first part of its samples' ids; the module's name.
        folder: its folder below `<data.root>/train`.
        hub: where it comes from, with its licence.
        files: its annotation files, in reading order; empty if there are none.
        read: streams its samples, counting every record in the context's tally.
    """

    name: str
    folder: str
    hub: str
    files: Callable[[Path], list[Path]]
    read: Callable[[Context], Iterator[Sample]]


def names() -> list[str]:
    """The sources there are."""
    return plugin_names("data_curation.sources", "SOURCE")


def source(name: str) -> Source:
    """The `SOURCE` of data_curation/sources/<name>.py. UserError if there is none (names the nearest)."""
    loaded: Source = load_plugin("data_curation.sources", name, "SOURCE", "data source")
    return loaded


def convert(
    records: Iterator[tuple[str, dict[str, Any]]], sample: Callable[[str, dict[str, Any]], Sample], tally: Tally
) -> Iterator[Sample]:
    """Samples of `records`; each record is counted as kept, or as dropped under the reason that `sample` raised.

    What `sample` noted in `tally` of a record that it then drops is taken back.
    """
    for record_id, record in records:
        tally.records += 1
        before = tally.notes.copy()
        try:
            made = sample(record_id, record)
        except Drop as drop:
            tally.dropped[str(drop)] += 1
            tally.notes = before
            continue
        tally.kept += 1
        yield made


def parquet_files(folder: Path, pattern: str = "*.parquet") -> list[Path]:
    """Parquet files at any depth below `folder`, by path."""
    return sorted(p for p in folder.rglob(pattern) if p.is_file())


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, streamed: memory grows with the size of its pages, not of its row groups.

    Raises:
        UserError: the file is no parquet, a column is missing, or it breaks off half way (names file and row).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    try:
        with pq.ParquetFile(path, buffer_size=STREAM_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)} (it has {', '.join(file.schema_arrow.names)})"
                )
            for batch in file.iter_batches(batch_size=STREAM_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    count += 1
                    yield row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet after row {count} ({error}); download it again") from error


def text_of(record: dict[str, Any], key: str) -> str:
    """The text under `key`, stripped. Drop if it is missing, empty or no text."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Drop(f"no_{key}")
    return value.strip()


def picture_below(folder: Path, name: Any) -> Path:
    """The picture `name` below `folder`. Drop if it is missing, or if the name leads out of the folder."""
    if not isinstance(name, str) or not name:
        raise Drop("no_image")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise Drop("image_path_leads_out")
    path = folder / parts
    try:
        is_there = path.is_file()
    except OSError:  # a name longer than any file's
        is_there = False
    if not is_there:
        raise Drop("missing_image")
    return path


@lru_cache(maxsize=4096)
def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture in a file, from its header and its last bytes.

    Drop if it is corrupt or cut short, or if its EXIF orientation turns or mirrors it: it is shown upright everywhere, and
    whether its boxes are in the stored pixels or in the upright ones nobody says.
    """
    with path.open("rb") as file:
        width, height, kind, is_upright = _size(file)
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        _check_tail(file.read(), kind)
    if not is_upright:
        raise Drop("turned_by_exif")
    return width, height


def picture_bytes_size(data: bytes) -> tuple[int, int, str]:
    """(width, height, format such as "PNG") of a picture in memory. Drop if it is corrupt or cut short."""
    width, height, kind, _ = _size(io.BytesIO(data))
    _check_tail(data[-TAIL_BYTES:], kind)
    return width, height, kind


def _size(file: Any) -> tuple[int, int, str, bool]:
    """Width, height, format, and whether the picture is stored as it is to be looked at."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, UPRIGHT) if "exif" in image.info else UPRIGHT
            return width, height, str(image.format), turned in (0, UPRIGHT)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise Drop("corrupt_image") from error


def _check_tail(tail: bytes, kind: str) -> None:
    end = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind, b"")
    if end not in tail:
        raise Drop("corrupt_image")


def tidy_boxes(boxes: Sequence[Box], size: tuple[int, int], tally: Tally) -> tuple[Box, ...]:
    """Boxes clipped to a picture of `size` (width, height), each once, in order.

    A box without area, or with less than half of itself inside, is left out and noted. Drop if boxes were given and none
    is left because all lie beyond the picture.
    """
    kept: list[Box] = []
    beyond = 0
    for box in boxes:
        if not box.is_valid:
            tally.notes["box_without_area"] += 1
            continue
        width, height = (1.0, 1.0) if box.frame == "unit" else (float(size[0]), float(size[1]))
        inside = Box(max(0.0, box.x1), max(0.0, box.y1), min(width, box.x2), min(height, box.y2), box.frame)
        if not inside.is_valid or _area(inside) < MIN_INSIDE * _area(box):
            beyond += 1
            tally.notes["box_beyond_image"] += 1
            continue
        if tuple(inside) != tuple(box):
            tally.notes["box_clipped"] += 1
        if inside not in kept:
            kept.append(inside)
    if beyond and not kept:
        raise Drop("boxes_beyond_image")
    return tuple(kept)


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def box_of(numbers: Any, *, unit_allowed: bool = False) -> Box | None:
    """A box from four numbers in original pixels; from 0 to 1 if `unit_allowed` and none exceeds 1. None if unreadable.

    A number a little above 1 is a unit box that runs over its picture: no box in pixels ends before the second pixel.
    """
    try:
        x1, y1, x2, y2 = (float(v) for v in numbers)
    except (TypeError, ValueError, OverflowError):  # an integer beyond all floats is JSON too
        return None
    is_unit = unit_allowed and max(x1, y1, x2, y2) < 2.0
    return Box(x1, y1, x2, y2, "unit" if is_unit else "original")
