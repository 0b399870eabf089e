"""The tables of a run of checks, for docs/benchmarks.md: what passed, tokens per second, memory beside the plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

from perf.common import show
from perf.gpu.result import Result
from perf.run import GPU


def page(results: Sequence[Result]) -> str:
    """All sections as Markdown; a section without figures is left out."""
    out = StringIO()
    with redirect_stdout(out):
        show(
            f"{GPU}: checks",
            "`make gpu-check` (docs/gpu_check.md): the stages' own trainers with the preset's options at the shapes of 3B and 7B, random weights, "
            "one card. Each check states the number that decided.",
            ("check", "result", "finding", "seconds"),
            [(r.name, r.state, r.finding.replace("|", "/"), f"{r.seconds:.0f}") for r in results],
        )
        speeds = [(f"{r.name}: {part}", f"{value:,.0f}") for r in results for part, value in r.speeds.items()]
        if speeds:
            show(
                f"{GPU}: tokens per second",
                "Real tokens: each rollout with its own prompt, whatever the pass computed.",
                ("part", "tokens per second"),
                speeds,
            )
        memory = [
            (f"{r.name}: {kind}", f"{peak:.1f}", f"{planned:.1f}", f"{peak / planned:.2f}")
            for r in results
            for kind, (peak, planned) in r.memory.items()
        ]
        if memory:
            show(
                f"{GPU}: memory beside the plan",
                "Peak of the trainer's process in GB, and what `make plan` expects for sequences of the longest length.",
                ("process", "measured", "planned", "ratio"),
                memory,
            )
    return out.getvalue()
