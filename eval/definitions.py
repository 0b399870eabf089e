"""What the columns of the tables mean, for the report and the model card."""

from __future__ import annotations

from dataclasses import dataclass

from eval.measures import measures
from fgrpo.schema import Config


@dataclass(frozen=True)
class Definition:
    """A metric's title and its definition."""

    title: str
    text: str


def definitions() -> list[Definition]:
    """One definition per measure; a reward without one is named with the file that should state it."""
    return [
        Definition(
            m.report.title, m.report.definition or f"not described (`Report.definition` in rewards/{m.score}.py)"
        )
        for m in measures()
    ]


def reading(config: Config) -> str:
    """How intervals and averages are to be read."""
    return (
        f"Intervals: {100 * config.eval.confidence:.0f}% bootstrap intervals over questions ({config.eval.bootstrap_samples:,} "
        "resamples); they hold no variance between training seeds. Average: plain mean of the benchmarks. A score that does not "
        "apply, or whose judge failed, is in no mean."
    )
