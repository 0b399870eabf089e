"""What measuring the policy costs (rl/probes): each pass as a share of the step, from one short run of rl.train.

Command: `python -m perf.probes --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rl.train
from fgrpo.files import read_jsonl
from perf.common import WARM_UP, borrowed_stages, load, main, median, show
from rl.probes.passes import Passes

STEPS = 8
MONITORS = "rl.monitor=[evidence_margin,control_margin,vision_dependence]"
WORDS = {
    "original": "the image itself (TRL makes no old pass here)",
    "evidence": "annotated boxes blanked",
    "control": "one control region blanked",
    "patches": "random cells blanked",
}


class Timed:
    """Within it, seconds and rollouts of each pass, in order; one list per step."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[float, int]]] = []

    def __enter__(self) -> Timed:
        own, start = Passes._pass, Passes.__init__
        self._own = own, start

        def begin(this: Passes, *args: Any) -> None:
            self.steps.append([])
            start(this, *args)

        def passed(this: Passes, rows: Sequence[int], cells: Mapping[int, Any]) -> Any:
            began = time.perf_counter()
            found = own(this, rows, cells)
            if rows:
                self.steps[-1].append((time.perf_counter() - began, len(rows)))
            return found

        Passes._pass, Passes.__init__ = passed, begin  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Passes._pass, Passes.__init__ = self._own  # type: ignore[method-assign]


def table(
    lines: Sequence[Mapping[str, Any]], steps: Sequence[Sequence[tuple[float, int]]]
) -> list[tuple[str, str, str]]:
    """Rows of the page: what, share of the median step without probes, share of the rollouts.

    Passes of one kind in a step are averaged; the original pass is split into the parts that later passes ask for.
    """
    base = median([line["seconds/step"] - line["seconds/probes"] for line in lines])
    total = median([line["seconds/probes"] for line in lines])
    by_kind: dict[str, list[tuple[float, int]]] = {}
    rollouts = max(count for step in steps for _, count in step)
    for step in steps:
        for kind, one in zip(kinds(len(step)), step, strict=True):
            by_kind.setdefault(kind, []).append(one)
    rows = [
        (
            WORDS[kind],
            f"{median([s for s, _ in by_kind[kind]]) / base:.1%}",
            f"{median([n for _, n in by_kind[kind]]) / rollouts:.0%}",
        )
        for kind in WORDS
        if kind in by_kind
    ]
    return [*rows, ("**all of them**", f"{total / base:.1%}", "")]


def kinds(count: int) -> list[str]:
    """The kinds of a step's passes in order: the original pass is made in two parts, for questions with boxes and for the others."""
    order = ["original", "evidence", "control", "control", "original", "patches"]
    return order if count == len(order) else order[:4] + order[5:]


def body(args: argparse.Namespace) -> None:
    """One run, one table."""
    cfg = load(args, args.method, f"rl.max_steps={STEPS}", f"rl.save_steps={STEPS}", MONITORS)
    with Timed() as timed, borrowed_stages(args) as root:
        lines = list(read_jsonl(Path(rl.train.train(cfg, root)) / "metrics.jsonl"))[WARM_UP:]
    show(
        "Measuring the policy",
        f"Share of the median step without probes ({STEPS - WARM_UP} steps, method {args.method}, one core). Each pass takes the rollouts "
        "that need it, which share the row of their prompt; a frozen tower sees each changed image once. With several updates per "
        "generation, or with vLLM, the first row costs nothing: TRL's old log-probabilities are used.",
        ("pass", "share of the step", "rollouts in it"),
        table(lines, timed.steps[WARM_UP:]),
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
