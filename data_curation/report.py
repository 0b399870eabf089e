"""The data stage's report.md: what was read, dropped and chosen, cluster sizes with examples, the difficulty histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_curation.pool import Pool
from fgrpo.schema import Data

EXAMPLE_CLUSTERS = 5  # the largest clusters of a source that are shown
BAR = 40  # characters of the longest bar


def write(
    data: Data,
    pools: Mapping[str, Pool],
    counts: Mapping[str, tuple[int, int]],
    clusters: Mapping[str, Sequence[Mapping[str, Any]]],
    spread: Mapping[str, Mapping[str, int]],
    failed: Mapping[str, int],
) -> str:
    """The report as Markdown. `counts`: (seed, RL) samples by source; the rest as `data_curation.run` has it."""
    lines = ["# Curated data", "", "| source | records | usable | seed (asked) | RL (asked) |", "|---|---|---|---|---|"]
    short = []
    for name, pool in pools.items():
        (seed, rl), asked = counts[name], data.sources[name]
        lines.append(f"| {name} | {pool.tally.records} | {len(pool)} | {seed} ({asked.seed}) | {rl} ({asked.rl}) |")
        for kind, got, wanted in (("seed", seed, asked.seed), ("RL", rl, asked.rl)):
            if got < wanted:
                short.append(f"- **{name}: only {got} of {wanted} {kind} samples**, since no more survived.")
    lines += ["", *short] if short else []
    lines += ["", "## Dropped records and repairs", ""]
    for name, pool in pools.items():
        dropped = _listed(pool.tally.dropped) or "nothing"
        lines.append(
            f"- {name}: dropped {dropped}" + (f"; noted {_listed(pool.tally.notes)}" if pool.tally.notes else "")
        )
    lines += ["", "## Difficulty", "", f"Mean accuracy of {data.difficulty_rollouts} rollouts of the base model."]
    for name, histogram in spread.items():
        lines += ["", f"{name} ({sum(histogram.values())} samples)", "", "```", *_bars(histogram), "```"]
    if failed:
        lines += ["", f"{len(failed)} samples could not be rolled out and are in neither set."]
    lines += ["", "## Clusters of seed questions"]
    for name, found in clusters.items():
        if not found:
            continue
        sizes = sorted((c["size"] for c in found), reverse=True)
        lines += [
            "",
            f"{name}: {len(found)} clusters, sizes {sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}",
            "",
        ]
        for cluster in sorted(found, key=lambda c: -c["size"])[:EXAMPLE_CLUSTERS]:
            lines.append(f"- {cluster['size']}: " + "; ".join(cluster["examples"]))
    return "\n".join(lines) + "\n"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _bars(histogram: Mapping[str, int]) -> list[str]:
    most = max(histogram.values(), default=1)
    return [f"{mean}  {'#' * max(1, round(BAR * count / most))} {count}" for mean, count in histogram.items()]
