"""report.md of the tree search: what was accepted, what it cost, what was left out and why. From trees and traces alone, so
that a resumed run writes the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgrpo.types import Trace
from mcts.tree import Node, Tree, largest_area

GROUPS = {
    "rejected/": "Proposed steps that were not taken",
    "rollouts/": "Rollouts by outcome",
    "failed/": "Requests that failed",
}


@dataclass
class Tally:
    """Sums over trees; `add` one at a time."""

    counts: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    steps: dict[str, Counter[int]] = field(default_factory=lambda: {"direct": Counter(), "corrected": Counter()})

    def add(self, tree: Tree, traces: Sequence[Trace]) -> None:
        """Count a finished tree and its traces."""
        kinds = Counter(trace.kind for trace in traces)
        self.counts.update(_zoom(tree))
        for trace in traces:
            self.steps[trace.kind][trace.meta["steps"]] += 1
        row = Counter(
            {
                "trees": 1,
                "solved": int(tree.root.value_sum > 0),
                "direct": kinds["direct"],
                "corrected": kinds["corrected"],
                "root_visits": tree.root.visits,
                "root_correct": round(tree.root.value_sum),
            }
        )
        self.sources.setdefault(tree.sample.source, Counter()).update(row)
        self.counts.update(tree.counts)
        self.counts.update(row)

    @property
    def accepted(self) -> int:
        """Traces kept, of both kinds."""
        return self.counts["direct"] + self.counts["corrected"]


def write(tally: Tally, failed: Mapping[str, str]) -> str:
    """The report as markdown; `failed` are reasons by sample id."""
    c = tally.counts
    lines = [
        "# Tree search",
        "",
        f"{c['trees']:,} trees, {c['solved']:,} with a correct answer in them, {len(failed):,} failed.",
        "",
        f"{tally.accepted:,} chains accepted: {c['direct']:,} direct, {c['corrected']:,} corrected.",
        "",
        f"{c['requests']:,} requests for {c['completions']:,} continuations of {c['tokens']:,} tokens: "
        f"{_ratio(c['completions'], tally.accepted)} continuations and {_ratio(c['tokens'], tally.accepted)} tokens a chain. "
        f"{c['short_expansions']:,} expansions found fewer distinct steps than asked for.",
        "",
        f"{_ratio(c['requests'], c['trees'])} requests, {_ratio(c['completions'], c['trees'])} continuations and "
        f"{_ratio(c['tokens'], c['trees'])} tokens a tree.",
        "",
        f"{_share(c['steps/boxed'], c['steps/all'])} of the trees' steps name a region; of those that follow such a step, "
        f"{_share(c['steps/zoomed'], c['steps/followed'])} look at one that is no larger (progressive zoom).",
        "",
        "| source | trees | solved | value at the root | direct | corrected |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(tally.sources.items()):
        value = row["root_correct"] / row["root_visits"] if row["root_visits"] else 0.0
        lines.append(
            f"| {name} | {row['trees']} | {row['solved']} | {value:.3f} | {row['direct']} | {row['corrected']} |"
        )
    lines += _table(
        "Steps a chain", {f"{kind}, {n}": k for kind in tally.steps for n, k in sorted(tally.steps[kind].items())}
    )
    for prefix, title in GROUPS.items():
        lines += _table(
            title, {name.removeprefix(prefix): n for name, n in sorted(c.items()) if name.startswith(prefix)}
        )
    if failed:
        lines += ["", "## Failed trees", "", "Tried again by `make mcts` once `done` beside this page is deleted.", ""]
        lines += [f"- {name}: {' '.join(why.split())}" for name, why in failed.items()]
    return "\n".join(lines) + "\n"


def _zoom(tree: Tree) -> Counter[str]:
    """Steps of a tree, those that name a region, those that follow such a step, and those of them that do not look wider."""
    counts: Counter[str] = Counter()
    waiting: list[tuple[Node, float | None]] = [(tree.root, None)]
    while waiting:
        node, before = waiting.pop()
        area = largest_area(node.step, tree.policy.box_tag)
        counts["steps/all"] += bool(node.step)
        counts["steps/boxed"] += area is not None
        if area is not None and before is not None:
            counts["steps/followed"] += 1
            counts["steps/zoomed"] += area <= before
        waiting.extend((child, before if area is None else area) for child in node.children)
    return counts


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    if not rows:
        return []
    return ["", f"## {title}", "", "| | number |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in rows.items())]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _ratio(total: int, parts: int) -> str:
    return f"{total / parts:.1f}" if parts else "no"
