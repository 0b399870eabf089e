"""Which SFT weights a cell starts from. At a seed, two arms are compared only if they start from the same ones.

A chain is made again where its cells are run in another checkout. Equal versions give equal weights on equal processors only, so cells
of two machines need not be pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from fgrpo.runs import MANIFEST
from fgrpo.sealed import read_sealed
from ops.lab.cells import Job

COLUMN = "start_weights"
_WEIGHTS = ("final/", ".safetensors")  # how the names of the files begin and end


def of_cell(job: Job) -> dict[str, str]:
    """{COLUMN: hash of the final weights of SFT in the cell's folder}; {} for a cell without SFT, and for one that was restored."""
    found = sorted(job.folder.glob(f"runs/*/sft/{MANIFEST}"))
    if not found:
        return {}
    outputs = read_sealed(found[0]).get("outputs") or {}
    begin, end = _WEIGHTS
    hashes = {
        name: str(outputs[name]["hash"]) for name in sorted(outputs) if name.startswith(begin) and name.endswith(end)
    }
    return {COLUMN: hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]} if hashes else {}


def apart(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Seeds at which two arms start from different weights, or of which only one names its own: the other is from before a repetition."""
    of_a, of_b = ({cell["seed"]: cell.get(COLUMN) for cell in cells} for cells in (a, b))
    return tuple(seed for seed in sorted(of_a.keys() & of_b) if of_a[seed] != of_b[seed])
