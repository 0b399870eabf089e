"""Which SFT weights a cell starts from. At a seed, two arms are compared only if they start from the same ones.

A chain is made again where its cells are run in another checkout. Equal versions give equal weights on equal arithmetic only, so cells
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
Row = Mapping[str, Any]
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


def pairs(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Row], list[Row], tuple[int, ...]]:
    """At each seed two runs of `a` and `b` that start from the same weights, and the seeds at which no two runs do.

    Of several such pairs, the one that was complete first is taken. Two runs that name no weights count as a pair: they are from before
    weights were recorded. A seed of one arm alone keeps its first run.

    Args:
        a, b: finished runs, a cell's first run before its further ones.
    """
    chosen_a, chosen_b, apart = list[Row](), list[Row](), list[int]()
    of_a, of_b = _by_seed(a), _by_seed(b)
    for seed in sorted(of_a.keys() | of_b):
        both = [(x, y) for x in of_a.get(seed, ()) for y in of_b.get(seed, ())]
        same = [(x, y) for x, y in both if x.get(COLUMN) == y.get(COLUMN)]
        if both and not same:
            apart.append(seed)
        elif same:
            x, y = min(same, key=lambda pair: sorted((str(run.get("started")) for run in pair), reverse=True))
            chosen_a.append(x)
            chosen_b.append(y)
        else:
            chosen_a += of_a.get(seed, [])[:1]
            chosen_b += of_b.get(seed, [])[:1]
    return chosen_a, chosen_b, tuple(apart)


def _by_seed(runs: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for run in runs:
        found.setdefault(run["seed"], []).append(run)
    return found
