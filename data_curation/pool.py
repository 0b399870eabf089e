"""The candidates of one source on disk: written once by the loader, then read by index without loading the file into memory.

`pool/<source>.jsonl` has one `Sample` per line, `pool/<source>.json` the tally of dropped records. The tally is written last, so
a pool without a tally is rebuilt.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data_curation.source import Context, Source, Tally
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.runs import write_json
from fgrpo.types import Sample


class Pool:
    """Samples of one source: ids and questions in memory, everything else on disk."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.path, self.tally = path, tally
        self.ids: list[str] = []
        self.questions: list[str] = []
        self._offsets = array("q")
        with path.open("rb") as lines:
            offset = 0
            for line in lines:
                item = json.loads(line)
                self.ids.append(item["id"])
                self.questions.append(item["question"])
                self._offsets.append(offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        with self.path.open("rb") as lines:
            for line in lines:
                yield Sample.from_dict(json.loads(line))

    def samples(self, indices: Iterator[int] | list[int] | tuple[int, ...]) -> list[Sample]:
        """The samples at `indices`, in the same order."""
        samples = []
        with self.path.open("rb") as file:
            for i in indices:
                file.seek(self._offsets[i])
                samples.append(Sample.from_dict(json.loads(file.readline())))
        return samples


def written(path: Path) -> Pool | None:
    """The pool at `path`; None if it is missing, truncated or damaged."""
    try:
        pool = Pool(path, Tally.from_dict(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return pool if len(pool) == pool.tally.kept else None


def build(source: Source, context: Context, path: Path, limit: int | None) -> Pool:
    """The pool at `path`, read from the source unless it is already complete.

    Args:
        limit: maximum number of samples; None for all.

    Raises:
        UserError: the data set is missing, or none of its records is usable (names the most common reasons).
    """
    counted = path.with_suffix(".json")
    if path.exists() and counted.exists():
        if (pool := written(path)) is not None:
            return pool
        print(f"{path} is damaged; reading {source.name} again")
    if not source.files(context.folder):
        raise UserError(
            f"no annotation files of {source.name} in {context.folder}; `make data-download` with the preset downloads "
            f"{source.hub}, `make world PRESET=mini` writes a miniature one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = itertools.islice(source.read(context), limit)
    write_jsonl(path, (s.to_dict() for s in tqdm(samples, desc=f"read {source.name}", unit=" samples", total=limit)))
    tally = context.tally
    if tally.kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.most_common(3)) or "no records"
        raise UserError(
            f"none of the {tally.records} records of {source.name} in {context.folder} is usable: {reasons}"
        )
    write_json(counted, tally.to_dict())
    return Pool(path, tally)
