"""Items of a finished stage that a later run may still get: their engine was down or answered nonsense.

Below a configured share they do not keep a stage from being done. The manifest counts them, and the same command requests them
again.
"""

from __future__ import annotations

from pathlib import Path

from fgrpo.sealed import read_sealed

COUNT = "failed, requested again by the next run"  # in the manifest's counts


def pending(folder: Path) -> int:
    """Number of such items in a stage's folder; 0 without a readable manifest."""
    try:
        count = read_sealed(folder / "manifest.json")["counts"].get(COUNT, 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
    return count if isinstance(count, int) else 0
