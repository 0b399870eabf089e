"""SAT-Real (array/SAT, test split): the columns of the training split, two answers per question; benchmark column SAT-Real."""

from __future__ import annotations

from pathlib import Path

from miniworld.write.sat import SCHEMA, rows
from miniworld.write.studio import Studio, Writer, parquet

FAMILIES = ("moved", "hrel", "depth")


def _write(folder: Path, count: int, studio: Studio) -> None:
    parquet(folder / "SAT_test.parquet", rows(studio, FAMILIES, count), SCHEMA)


WRITER = Writer("bench/SAT", "bench", _write)
