"""Judges by role: does the trace entail its answer, is each sentence borne out by the picture, which option was meant.

`build(config, data_root)` gives the three judges of one backend (a file of judges/backends). A judge answers every item with
a `Verdict`; what it could not judge is a verdict with `failed=True`, never a score. Imports no torch.
"""

from judges.base import (
    Backend,
    ConsistencyItem,
    ExtractionItem,
    GroundingItem,
    Judge,
    JudgeSet,
    Meter,
    build,
    names,
)

__all__ = [
    "Backend",
    "ConsistencyItem",
    "ExtractionItem",
    "GroundingItem",
    "Judge",
    "JudgeSet",
    "Meter",
    "build",
    "names",
]
