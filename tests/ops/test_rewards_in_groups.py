"""What the rewards of a run pay for, on groups worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fgrpo.errors import UserError
from ops.rewards_in_groups import correlation, read, table

NONE = None
GROUPS = {  # sample: (task, look, boxes) of each rollout
    "a": [(2.0, 0.20, 0.0), (2.0, 0.22, 0.5), (2.0, NONE, 1.0)],  # look varies alone
    "b": [(0.0, 0.20, 0.5), (2.0, 0.20, 0.5)],  # the task alone
    "c": [(2.0, 0.24, 0.9), (1.0, 0.20, 0.1)],  # all vary
    "d": [(2.0, NONE, NONE), (2.0, NONE, NONE)],
}


def write(folder: Path, name: str, samples: str) -> None:
    rows = [(sample, *scores) for sample in samples for scores in GROUPS[sample]]
    columns = {"sample_id": [row[0] for row in rows]}
    for place, reward in enumerate(("task", "look", "boxes"), start=1):
        columns |= {reward: [row[place] for row in rows], f"{reward}/state": ["scored"] * len(rows)}
    pq.write_table(pa.table(columns), folder / name)


def test_spread_share_and_correlation_are_within_groups(tmp_path: Path) -> None:
    write(tmp_path, "000001.parquet", "ab")
    write(tmp_path, "000003.parquet", "cd")
    groups = read(tmp_path)
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table(groups)[2:]}
    # deviation of look: ±.01, 0 and 0, ±.02 over six scores
    deviation = f"{np.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 6):.3f}"
    assert rows["look"][1:6] == ["0.210", "–", deviation, "50%", "25%"]
    assert rows["task"][1:6] == ["2.000", "2.000", f"{np.sqrt((2 * 1 + 2 * 0.25) / 9):.3f}", "50%", "0%"]
    # look and boxes: (∓.01, ∓.25), (0, 0) twice, (±.02, ±.4)
    x, y = np.array([-0.01, 0.01, 0, 0, 0.02, -0.02]), np.array([-0.25, 0.25, 0, 0, 0.4, -0.4])
    assert correlation(groups, "look", "boxes") == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    assert rows["look"][7] == "1.000" and float(rows["look"][6]) == pytest.approx(float(rows["task"][7]))


def test_a_reward_that_never_varies_has_no_correlation(tmp_path: Path) -> None:
    write(tmp_path, "000001.parquet", "bd")
    assert correlation(read(tmp_path), "look", "task") is None


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rollouts"):
        read(tmp_path)
    (tmp_path / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"000001\.parquet is damaged"):
        read(tmp_path)
