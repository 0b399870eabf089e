"""Writes report.md of the data stage: records read, dropped and selected, clusters with examples, the difficulty histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_curation.pool import Pool
from data_curation.shortcuts import Shortcuts
from data_curation.shortcuts import line as shortcut_line
from fgrpo.schema import Data

EXAMPLE_CLUSTERS = 5  # number of clusters shown per source, largest first
BAR = 40  # characters of the longest bar


def write(
    data: Data,
    pools: Mapping[str, Pool],
    counts: Mapping[str, tuple[int, int]],
    clusters: Mapping[str, Sequence[Mapping[str, Any]]],
    histograms: Mapping[str, Mapping[str, int]],
    failed: Mapping[str, int],
    shortcuts: Mapping[str, Shortcuts],
) -> str:
    """The report as Markdown.

    Args:
        counts: numbers of (seed, RL) samples by source.
        clusters: by source: size and example questions per cluster.
        histograms: number of samples by mean accuracy, per source and for "all".
        failed: samples that could not be rolled out.
        shortcuts: what the options of each source give away.
    """
    lines = [
        "# Curated data",
        "",
        "| source | records | usable | seed (requested) | RL (requested) |",
        "|---|---|---|---|---|",
    ]
    short = []
    for name, pool in pools.items():
        (seed, rl), target = counts[name], data.sources[name]
        lines.append(f"| {name} | {pool.tally.records} | {len(pool)} | {seed} ({target.seed}) | {rl} ({target.rl}) |")
        for kind, count, requested in (("seed", seed, target.seed), ("RL", rl, target.rl)):
            if count < requested:
                short.append(f"- **{name}: only {count} of {requested} {kind} samples**, because no more are usable.")
    lines += ["", *short] if short else []
    lines += ["", "## Dropped records and repairs", ""]
    for name, pool in pools.items():
        dropped = _listed(pool.tally.dropped) or "none"
        lines.append(
            f"- {name}: dropped {dropped}" + (f"; noted {_listed(pool.tally.notes)}" if pool.tally.notes else "")
        )
    lines += ["", "## Solvable without the image", "", "Expected accuracy of rules that see the text alone.", ""]
    lines += [shortcut_line(name, found) for name, found in shortcuts.items()]
    lines += ["", "## Difficulty", "", f"Mean accuracy of {data.difficulty_rollouts} rollouts of the base model."]
    for name, histogram in histograms.items():
        lines += ["", f"{name} ({sum(histogram.values())} samples)", "", "```", *_bars(histogram), "```"]
    if failed:
        lines += ["", f"{len(failed)} samples could not be rolled out and are in neither set."]
    lines += ["", "## Clusters of seed questions"]
    for name, source_clusters in clusters.items():
        if not source_clusters:
            continue
        sizes = sorted((c["size"] for c in source_clusters), reverse=True)
        lines += [
            "",
            f"{name}: {len(source_clusters)} clusters, sizes {sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}",
            "",
        ]
        for cluster in sorted(source_clusters, key=lambda c: -c["size"])[:EXAMPLE_CLUSTERS]:
            lines.append(f"- {cluster['size']}: " + "; ".join(cluster["examples"]))
    return "\n".join(lines) + "\n"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _bars(histogram: Mapping[str, int]) -> list[str]:
    highest = max(histogram.values(), default=1)
    return [f"{mean}  {'#' * max(1, round(BAR * count / highest))} {count}" for mean, count in histogram.items()]
