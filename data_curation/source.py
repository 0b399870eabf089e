"""Data sources and their shared code: counted drops, streamed parquet, image checks, box cleaning.

A source is one module of `data_curation.sources` that exposes `SOURCE`; it needs no registration. An error in a record drops
that record under a reason. An error that affects a complete file is a `UserError`. Appendix A.3.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from fgrpo import image_files
from fgrpo.boxes import box_of, clipped
from fgrpo.errors import UserError
from fgrpo.files import files_below
from fgrpo.options import UnclearOptions, split_options
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.types import Box, Sample

STREAM_ROWS = 64  # rows decoded at a time
STREAM_BYTES = 1 << 20  # read-ahead per column; without it a complete row group (5.2 GB in SAT) is read at once


@dataclass
class Tally:
    """Counts of a source's records: `dropped` by reason; `notes` count repairs in records that stay."""

    records: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        return cls(data["records"], data["kept"], Counter(data["dropped"]), Counter(data["notes"]))


class Drop(Exception):
    """Raised by a source for an unusable record; `str(drop)` is the reason under which it is counted."""


@dataclass(frozen=True)
class Context:
    """The inputs of a source.

    Attributes:
        folder: folder of the data set below `<data.root>/train`.
        images: output folder for images that are stored inside rows.
        seed: determines option orders and distractors, together with the record's id.
        choices: number of options of a free-form answer, including the correct one.
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
        name: first part of its samples' ids; the name of the module.
        folder: its folder below `<data.root>/train`.
        hub: repository and licence.
        files: its annotation files in reading order; empty if there are none.
        read: streams its samples and counts every record in the context's tally.
    """

    name: str
    folder: str
    hub: str
    files: Callable[[Path], list[Path]]
    read: Callable[[Context], Iterator[Sample]]


def names() -> list[str]:
    """Names of all sources."""
    return plugin_names("data_curation.sources", "SOURCE")


def source(name: str) -> Source:
    """The `SOURCE` of data_curation/sources/<name>.py.

    Raises:
        UserError: there is no such source (suggests the closest name).
    """
    loaded: Source = load_plugin("data_curation.sources", name, "SOURCE", "data source")
    return loaded


def convert(
    records: Iterator[tuple[str, dict[str, Any]]], sample: Callable[[str, dict[str, Any]], Sample], tally: Tally
) -> Iterator[Sample]:
    """Convert `records` to samples; each record is counted as kept, or as dropped under the reason that `sample` raises.

    Notes that `sample` adds to `tally` for a record that it then drops are undone.
    """
    for record_id, record in records:
        tally.records += 1
        notes_before = tally.notes.copy()
        try:
            converted = sample(record_id, record)
        except Drop as drop:
            tally.dropped[str(drop)] += 1
            tally.notes = notes_before
            continue
        tally.kept += 1
        yield converted


def parquet_files(folder: Path, pattern: str = "*.parquet") -> list[Path]:
    """Parquet files at any depth below `folder`, sorted by path."""
    return files_below(folder, pattern)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, streamed: memory grows with the size of its pages, not of its row groups.

    Raises:
        UserError: the file is not parquet, a column is missing, or the file is truncated (names file and row).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    try:
        with pq.ParquetFile(path, buffer_size=STREAM_BYTES, pre_buffer=False, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)} (its columns: {', '.join(file.schema_arrow.names)}). "
                    "Download it again"
                )
            for batch in file.iter_batches(batch_size=STREAM_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    count += 1
                    yield row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet after row {count} ({error}). Download it again") from error


def numbered_rows(paths: Sequence[Path], columns: Sequence[str], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(record id, row) of several parquet files; ids are "<prefix>/<n>" with n counted over all files.

    Raises:
        UserError: see `parquet_rows`.
    """
    rows = (row for path in paths for row in parquet_rows(path, columns))
    for n, row in enumerate(rows):
        yield f"{prefix}/{n}", row


def text_of(record: dict[str, Any], key: str) -> str:
    """The text under `key`, stripped.

    Raises:
        Drop: the value is missing, empty, or not text.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Drop(f"no_{key}")
    return value.strip()


def options_in(text: str) -> tuple[str, tuple[str, ...]]:
    """`fgrpo.options.split_options` of a record.

    Raises:
        Drop: unclear_options or equal_options.
    """
    try:
        return split_options(text)
    except UnclearOptions as error:
        raise Drop(str(error)) from error


def image_below(folder: Path, name: Any) -> Path:
    """The path of image `name` below `folder`.

    Raises:
        Drop: the reasons of `fgrpo.image_files.existing_below`.
    """
    try:
        return image_files.existing_below(folder, name)
    except image_files.ImageProblem as problem:
        raise Drop(problem.reason) from problem


@lru_cache(maxsize=4096)
def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image file that is complete (`fgrpo.image_files.read_complete_header`).

    Raises:
        Drop: the image is not usable (`image_bytes_size`), or its EXIF orientation rotates or mirrors it. Such an image is
            shown upright everywhere, and data sets do not state whether its boxes are in stored or in upright pixels.
    """
    with path.open("rb") as file:
        header = _usable(file)
    if header.orientation != 1:
        raise Drop("turned_by_exif")
    return header.width, header.height


def image_bytes_size(data: bytes) -> tuple[int, int, str]:
    """(width, height, format such as "PNG") of an image in memory.

    Raises:
        Drop: corrupt_image (also if truncated), empty_image, too_many_pixels, unknown_range, image_too_narrow.
    """
    header = _usable(io.BytesIO(data))
    return header.width, header.height, header.kind


def _usable(file: IO[bytes]) -> image_files.Header:
    try:
        header = image_files.read_complete_header(file)
    except image_files.ImageProblem as problem:
        raise Drop(problem.reason) from problem
    if header.is_narrow:
        raise Drop("image_too_narrow")
    return header


def tidy_boxes(boxes: Sequence[Box], size: tuple[int, int], tally: Tally) -> tuple[Box, ...]:
    """Boxes clipped to an image of `size` (width, height) in pixels, without duplicates, in order.

    A box without area, or with less than half of its area inside, is dropped and noted.

    Raises:
        Drop: there were boxes, none is left, and at least one lies outside the image.
    """
    clipped_boxes: list[Box] = []
    n_outside = 0
    for box in boxes:
        if not box.is_valid:
            tally.notes["box_without_area"] += 1
            continue
        inside = clipped(box, size)
        if inside is None:
            n_outside += 1
            tally.notes["box_beyond_image"] += 1
            continue
        if tuple(inside) != tuple(box):
            tally.notes["box_clipped"] += 1
        if inside not in clipped_boxes:
            clipped_boxes.append(inside)
    if n_outside and not clipped_boxes:
        raise Drop("boxes_beyond_image")
    return tuple(clipped_boxes)


def boxes_of(values: Iterable[Any], tally: Tally) -> tuple[Box, ...]:
    """Boxes in original pixels from lists of four numbers; unreadable ones are noted as "unreadable_box"."""
    boxes = []
    for numbers in values:
        box = box_of(numbers)
        if box is None:
            tally.notes["unreadable_box"] += 1
        else:
            boxes.append(box)
    return tuple(boxes)
