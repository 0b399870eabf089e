"""Writes report.md of the tree search: accepted chains, cost, and rejected proposals by reason.

The report depends on trees and traces only, so a resumed run writes the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgrpo.types import Trace
from mcts.linearize import left_out, repaired_lines
from mcts.tree import Node, Tree, largest_area

GROUPS = {
    "rejected/": "Rejected step proposals",
    "repaired/": "Repaired step proposals",
    "repaired_lines/": "Repaired lines of rollouts",
    "left_out/": "Finished chains left out, by the rule that a line breaks",
    "rollouts/": "Rollouts by outcome",
    "failed/": "Failed requests",
}


@dataclass
class Tally:
    """Sums over trees. Call `add` once per tree."""

    counts: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    steps: dict[str, Counter[int]] = field(default_factory=lambda: {"direct": Counter(), "corrected": Counter()})

    def add(self, tree: Tree, traces: Sequence[Trace]) -> None:
        """Count a finished tree and its traces."""
        kinds = Counter(trace.kind for trace in traces)
        self.counts.update(_zoom_counts(tree))
        self.counts.update(left_out(tree))
        self.counts.update(repaired_lines(tree))
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
        """Number of accepted traces of both kinds."""
        return self.counts["direct"] + self.counts["corrected"]


def write(tally: Tally, failed: Mapping[str, str]) -> str:
    """The report as Markdown.

    Args:
        failed: reason by sample id, for questions without a tree.
    """
    c = tally.counts
    lines = [
        "# Tree search",
        "",
        f"{c['trees']:,} trees, {c['solved']:,} of them with a correct answer; {len(failed):,} trees failed.",
        "",
        f"{tally.accepted:,} chains accepted: {c['direct']:,} direct, {c['corrected']:,} corrected.",
        "",
        f"{c['requests']:,} requests for {c['completions']:,} continuations with {c['tokens']:,} tokens: "
        f"{_ratio(c['completions'], tally.accepted)} continuations and {_ratio(c['tokens'], tally.accepted)} tokens per chain. "
        f"{c['short_expansions']:,} expansions returned fewer distinct steps than requested.",
        "",
        f"{_ratio(c['requests'], c['trees'])} requests, {_ratio(c['completions'], c['trees'])} continuations and "
        f"{_ratio(c['tokens'], c['trees'])} tokens per tree.",
        "",
        f"{_share(c['steps/boxed'], c['steps/all'])} of the trees' steps name a region. Of the boxed steps that follow "
        f"another boxed step, {_share(c['steps/zoomed'], c['steps/followed'])} name a region that is no larger "
        "(progressive zoom).",
        "",
        "| source | trees | solved | mean value of the root | direct | corrected |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(tally.sources.items()):
        value = row["root_correct"] / row["root_visits"] if row["root_visits"] else 0.0
        lines.append(
            f"| {name} | {row['trees']} | {row['solved']} | {value:.3f} | {row['direct']} | {row['corrected']} |"
        )
    lines += _table(
        "Steps per chain", {f"{kind}, {n}": k for kind in tally.steps for n, k in sorted(tally.steps[kind].items())}
    )
    for prefix, title in GROUPS.items():
        lines += _table(
            title, {name.removeprefix(prefix): n for name, n in sorted(c.items()) if name.startswith(prefix)}
        )
    if failed:
        lines += [
            "",
            "## Failed trees",
            "",
            "Delete the file `done` in this folder, then run `make mcts` to retry.",
            "",
        ]
        lines += [f"- {name}: {' '.join(reason.split())}" for name, reason in failed.items()]
    return "\n".join(lines) + "\n"


def _zoom_counts(tree: Tree) -> Counter[str]:
    """Counts of all steps, boxed steps, boxed steps after a boxed step, and those of the latter that do not zoom out."""
    counts: Counter[str] = Counter()
    stack: list[tuple[Node, float | None]] = [(tree.root, None)]
    while stack:
        node, previous_area = stack.pop()
        area = largest_area(node.step, tree.policy.box_tag)
        counts["steps/all"] += bool(node.step)
        counts["steps/boxed"] += area is not None
        if area is not None and previous_area is not None:
            counts["steps/followed"] += 1
            counts["steps/zoomed"] += area <= previous_area
        stack.extend((child, previous_area if area is None else area) for child in node.children)
    return counts


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    if not rows:
        return []
    return ["", f"## {title}", "", "| | count |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in rows.items())]


def _share(part: int, total: int) -> str:
    return f"{part / total:.0%}" if total else "none"


def _ratio(total: int, count: int) -> str:
    return f"{total / count:.1f}" if count else "no"
