"""The table of the demo's times: totals and ratios are of the right columns, and a failed stage ends the measurement."""

from __future__ import annotations

import sys

import pytest

from fgrpo.errors import UserError
from perf.demo import STAGES, Times, rows, timed


def test_totals_and_the_ratio_of_the_last_checkout_to_the_first() -> None:
    before = {stage: Times(2.0 + n, 5.0) for n, stage in enumerate(STAGES)}
    now = {stage: Times(1.0, 4.0) for stage in STAGES}
    table = rows({"before": before, "now": now})
    assert table[0] == [next(iter(STAGES)), "2.0", "5.0", "1.0", "4.0", "0.50"]
    count, wall = len(STAGES), sum(t.wall for t in before.values())
    assert table[-1] == [
        "all",
        f"{wall:.1f}",
        f"{5 * count:.1f}",
        f"{count:.1f}",
        f"{4 * count:.1f}",
        f"{count / wall:.2f}",
    ]
    assert [row[0] for row in rows({"now": now})] == [*STAGES, "all"] and len(rows({"now": now})[0]) == 3


def test_a_stage_that_fails_ends_the_measurement() -> None:
    spent = timed([sys.executable, "-c", "sum(range(3_000_000))"])
    assert spent.wall > 0 and spent.cpu > 0
    with pytest.raises(UserError, match="failed"):
        timed([sys.executable, "-c", "raise SystemExit(3)"])
