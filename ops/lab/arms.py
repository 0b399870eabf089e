"""The values of one method in one condition, by seed, benchmark and group of answers. Arrays are named by their axes: B draws, S
seeds, G groups of questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
POOLED = "all"  # the one stratum of a pooled metric
CELL_STRATUM = "cell"  # the one stratum of a value that a cell has once


@dataclass(frozen=True)
class Arm:
    """Values of one method in one condition.

    Attributes:
        seeds: S seeds, in order.
        strata: by benchmark {group: (sums_S, counts_S)} over the answers of a group that have a value.
        name: of the method, for messages.
    """

    seeds: tuple[int, ...]
    strata: Mapping[str, Mapping[str, tuple[Floats, Floats]]]
    name: str = "an arm"

    def only(self, seeds: Sequence[int]) -> Arm:
        """The arm with these seeds only."""
        at = [self.seeds.index(seed) for seed in seeds]
        strata = {name: {g: (s[at], c[at]) for g, (s, c) in groups.items()} for name, groups in self.strata.items()}
        return replace(self, seeds=tuple(seeds), strata=strata)

    def counts(self) -> dict[str, Floats]:
        """By benchmark the number of answers with a value, per seed (S)."""
        return {name: np.sum([c for _, c in groups.values()], axis=0) for name, groups in self.strata.items()}

    def answers(self) -> Floats:
        """The number of answers with a value, per seed (S)."""
        return np.sum([np.zeros(len(self.seeds)), *self.counts().values()], axis=0)

    def is_counted(self) -> bool:
        """Whether a seed's value counts answers of 0 or 1, so that it lies on a grid of one answer."""
        sums = [s for groups in self.strata.values() for s, _ in groups.values()]
        if not sums or self.answers().max() <= 1:
            return False
        return bool(np.allclose(np.concatenate(sums), np.rint(np.concatenate(sums)), rtol=0, atol=1e-9))

    def gaps(self) -> Iterator[str]:
        """Seeds without a value in a benchmark in which others have one, in words."""
        for benchmark, counts_S in self.counts().items():
            for seed, count in zip(self.seeds, counts_S, strict=True):
                if count == 0:
                    yield f"{self.name}, seed {seed}, has no value in {benchmark}"


def arm_of_rows(rows: Sequence[tuple[int, str, str, float | None]], pooled: bool = False, name: str = "an arm") -> Arm:
    """An arm from (seed, benchmark, group, value) of every answer; None is left out.

    Args:
        pooled: one stratum instead of one per benchmark (`rewards.base.Report.pooled`).
    """
    seeds = tuple(sorted({row[0] for row in rows}))
    place = {seed: i for i, seed in enumerate(seeds)}
    strata: dict[str, dict[str, tuple[Floats, Floats]]] = {}
    for seed, benchmark, group, value in rows:
        if value is None:
            continue
        groups = strata.setdefault(POOLED if pooled else benchmark, {})
        if group not in groups:
            groups[group] = (np.zeros(len(seeds)), np.zeros(len(seeds)))
        groups[group][0][place[seed]] += value
        groups[group][1][place[seed]] += 1.0
    return Arm(seeds, strata, name)


def arm_of_cells(values: Mapping[int, float], units: Mapping[int, int] | None = None, name: str = "an arm") -> Arm:
    """An arm of one value per seed.

    Args:
        units: {seed: what the value is a share of: questions, steps}; None: it is no share.
    """
    seeds = tuple(sorted(values))
    counts = np.array([float((units or {}).get(seed, 1)) for seed in seeds])
    sums = np.array([values[seed] for seed in seeds]) * counts
    return Arm(seeds, {CELL_STRATUM: {CELL_STRATUM: (sums, counts)}} if seeds else {}, name)


def means(arm: Arm, groups: Mapping[str, Sequence[str]], weights: Mapping[str, Floats]) -> Floats:
    """(B, S) means over the benchmarks of the weighted means over their groups; NaN where no benchmark has a value.

    Args:
        groups: G names of groups by benchmark.
        weights: (B, G) by benchmark: how often each group counts.
    """
    empty = (np.zeros(len(arm.seeds)), np.zeros(len(arm.seeds)))
    found = []
    for name, members in groups.items():
        pairs = [arm.strata[name].get(group, empty) for group in members]
        sums_GS, counts_GS = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        with np.errstate(invalid="ignore"):
            found.append((weights[name] @ sums_GS) / (weights[name] @ counts_GS))
    stacked = np.stack(found)
    known = np.isfinite(stacked).sum(axis=0)
    with np.errstate(invalid="ignore"):
        out: Floats = np.where(known > 0, np.nansum(stacked, axis=0) / known, np.nan)
    return out
