"""MMVP (MMVP/MMVP): 300 questions about 150 pairs of images that CLIP cannot tell apart; column MMVP of Table 1.

Files `Questions.csv` (Index, in some copies "lndex"; Question; Options "(a) … (b) …"; Correct Answer "(a)") and
`MMVP Images/<Index>.jpg`, with a space in the folder's name. The paper scores single questions; rows (1,2), (3,4), … are pairs,
and pair accuracy is reported too. Rows 99/100 and 279/280 are reported to be swapped: they stay, flagged in `meta`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, one_file
from fgrpo.errors import UserError
from fgrpo.options import UnclearOptions, letter_index, split_options
from fgrpo.types import Sample

REPORTED_SWAPPED = (99, 100, 279, 280)


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "Questions.csv", "mmvp")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        columns = rows.fieldnames or []
        index_name = next((c for c in columns if c.strip().lower() in ("index", "lndex")), None)
        missing = [c for c in ("Question", "Options", "Correct Answer") if c not in columns]
        if index_name is None or missing:
            raise UserError(
                f"benchmark mmvp: {path} has the columns {columns}; needed: Index, Question, Options, Correct Answer"
            )
        for row in rows:
            try:
                index = int(row[index_name])
            except (TypeError, ValueError):
                yield Drop("the index is no number")
                continue
            try:
                _, choices = split_options(row["Options"] or "")
            except UnclearOptions as error:
                yield Drop(str(error))
                continue
            gold = letter_index(row["Correct Answer"] or "", choices)
            if gold is None:
                yield Drop("the answer is no letter of the options")
                continue
            meta: dict[str, object] = {"group": f"mmvp/pair/{(index + 1) // 2}"}
            if index in REPORTED_SWAPPED:
                meta["flag"] = "reported swapped"
            image = str(path.parent / "MMVP Images" / f"{index}.jpg")
            yield Sample(
                f"mmvp/test/{index}", (image,), (row["Question"] or "").strip(), choices, choices[gold], meta=meta
            )


BENCHMARK = Benchmark("mmvp", "MMVP", "MMVP", "MMVP/MMVP", _read, paired=True)
