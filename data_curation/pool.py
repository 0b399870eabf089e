"""The candidates of one source on disk: written once by its loader, then found again by number without being in memory.

`pool/<source>.jsonl` holds one `Sample` a line, `pool/<source>.json` the tally of dropped records; the tally is written last,
so a pool without one is read again.
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
    """Samples of one source: ids and questions in memory, the rest on disk."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.path, self.tally = path, tally
        self.ids: list[str] = []
        self.questions: list[str] = []
        self._places = array("q")
        with path.open("rb") as lines:
            place = 0
            for line in lines:
                item = json.loads(line)
                self.ids.append(item["id"])
                self.questions.append(item["question"])
                self._places.append(place)
                place += len(line)

    def __len__(self) -> int:
        return len(self.ids)

    def samples(self, indices: Iterator[int] | list[int] | tuple[int, ...]) -> list[Sample]:
        """The samples with these numbers, in the order asked for."""
        found = []
        with self.path.open("rb") as file:
            for i in indices:
                file.seek(self._places[i])
                found.append(Sample.from_dict(json.loads(file.readline())))
        return found


def written(path: Path) -> Pool | None:
    """The pool at `path`; None if there is none, or it is cut or damaged."""
    try:
        known = Pool(path, Tally.from_dict(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return known if len(known) == known.tally.kept else None


def build(source: Source, context: Context, path: Path, limit: int | None) -> Pool:
    """The pool at `path`, read from the source unless it is complete already. `limit` stops after that many samples.

    Raises:
        UserError: the data set is not there, or none of its records can be used (names the commonest reason).
    """
    counted = path.with_suffix(".json")
    if path.exists() and counted.exists():
        if (known := written(path)) is not None:
            return known
        print(f"{path} is not what was written; reading {source.name} again")
    if not source.files(context.folder):
        raise UserError(
            f"no annotation files of {source.name} in {context.folder}; `make data PRESET=mini` writes the miniature, "
            f"the real one is {source.hub}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = itertools.islice(source.read(context), limit)
    write_jsonl(path, (s.to_dict() for s in tqdm(samples, desc=f"read {source.name}", unit=" samples", total=limit)))
    tally = context.tally
    if tally.kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.most_common(3)) or "no records"
        raise UserError(
            f"none of the {tally.records} records of {source.name} in {context.folder} can be used: {reasons}"
        )
    write_json(counted, tally.to_dict())
    return Pool(path, tally)
