"""What the rewards of an RL run pay for: their spread within groups, how often one alone decides, and how they move together.

Advantages are differences within a group of rollouts of one question, divided by the group's deviation. So a reward that hardly
varies there is scaled up as far as any other wherever no other varies, whatever its mean. Reads runs/<preset>/rl-<method>/rollouts;
all rewards count, monitored ones too. Command: `python -m ops.rewards_in_groups --preset mini --method mr1`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fgrpo import cli, config, runs
from fgrpo.errors import UserError
from rl.advantage import CONSTANT

TASK, STATE = "task", "/state"
Groups = list[dict[str, NDArray[np.float64]]]  # of each group: (R,) scores by reward, NaN without one


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        folder = runs.require(runs.folder(cfg, f"rl-{args.method}", args.runs) / "rollouts", f"rl-{args.method}")
        groups = read(folder)
        print(f"{folder}: {len(groups):,} groups of rollouts\n")
        print("\n".join(table(groups)))

    cli.run(body, cli.parser("what the rewards of an RL run pay for, within groups"), argv)


def read(folder: Path) -> Groups:
    """The groups of all generations in `folder`, in order.

    Raises:
        UserError: there are no rollouts, or a file is damaged.
    """
    groups: Groups = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            names = [name.removesuffix(STATE) for name in pq.read_schema(path).names if name.endswith(STATE)]
            stored = pq.read_table(path, columns=["sample_id", *names]).to_pydict()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or delete it to leave its steps out") from error
        rows: dict[str, list[int]] = defaultdict(list)
        for row, sample in enumerate(stored["sample_id"]):
            rows[sample].append(row)
        columns = {name: np.array(stored[name], dtype=np.float64) for name in names}
        groups += [{name: column[of_group] for name, column in columns.items()} for of_group in rows.values()]
    if not groups:
        raise UserError(f"{folder} holds no rollouts (*.parquet); run `make rl-<method>` first")
    return groups


def table(groups: Groups) -> list[str]:
    """Lines of a Markdown table with a row for each reward.

    Columns: means of the first and last quarter of the run, deviation within groups, share of groups in which it varies, share in
    which it varies and the task does not, and correlation within groups with each reward.
    """
    names = list(dict.fromkeys(name for group in groups for name in group))
    lines = [
        f"| reward | first quarter | last quarter | deviation within groups | varies | varies alone | {' | '.join(f'r with {name}' for name in names)} |",
        f"|---|{'---:|' * (5 + len(names))}",
    ]
    quarter = max(1, len(groups) // 4)
    for name in names:
        ends = [_mean(part, name) for part in (groups[:quarter], groups[-quarter:])]
        varying = [_varies(group, name) for group in groups]
        alone = [own and not _varies(group, TASK) for own, group in zip(varying, groups, strict=True)]
        cells = [*map(_number, (*ends, _deviation(groups, name))), _share(varying), _share(alone)]
        cells += [_number(correlation(groups, name, other)) for other in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def correlation(groups: Groups, one: str, other: str) -> float | None:
    """Pearson's r of two rewards within groups, over rollouts with both scores; None where one never varies."""
    pairs = [np.stack([group[one], group[other]]) for group in groups if one in group and other in group]
    centred = []
    for pair_2R in pairs:
        both_2R = pair_2R[:, ~np.isnan(pair_2R).any(axis=0)]
        if both_2R.shape[1] > 1:
            centred.append(both_2R - both_2R.mean(axis=1, keepdims=True))
    if not centred:
        return None
    x_N, y_N = np.concatenate(centred, axis=1)
    scale = float(np.sqrt((x_N**2).sum() * (y_N**2).sum()))
    return float((x_N * y_N).sum()) / scale if scale > 0 else None


def _scored(group: Mapping[str, NDArray[np.float64]], name: str) -> NDArray[np.float64]:
    column = group.get(name, np.empty(0))
    return column[~np.isnan(column)]


def _mean(groups: Groups, name: str) -> float | None:
    values = np.concatenate([_scored(group, name) for group in groups])
    return float(values.mean()) if len(values) else None


def _varies(group: Mapping[str, NDArray[np.float64]], name: str) -> bool:
    values = _scored(group, name)
    return len(values) > 1 and float(values.max() - values.min()) > CONSTANT * float(np.abs(values).max())


def _deviation(groups: Groups, name: str) -> float | None:
    """Root of the mean square of what differs from the group's mean, over groups with at least two scores."""
    centred = [values - values.mean() for group in groups if len(values := _scored(group, name)) > 1]
    return float(np.sqrt((np.concatenate(centred) ** 2).mean())) if centred else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(found: Sequence[Any]) -> str:
    return f"{sum(map(bool, found)) / len(found):.0%}"


if __name__ == "__main__":
    main()
