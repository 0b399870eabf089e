"""Shared by the measurements: the run they start from, medians, and one Markdown table each.

The scripts are outside the packages (no package imports them). Each reads a finished SFT stage (`make sft`), writes to a
temporary folder, and prints a heading, a sentence and one table. Figures are medians; ratios hold on other machines.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fgrpo import cli, config, runs
from fgrpo.schema import Config

WARM_UP = 1  # first steps to drop: they fill caches


def main(doc: str, body: Callable[[argparse.Namespace], None]) -> None:
    """Command line of one measurement: that of the stages."""
    cli.run(body, cli.parser(doc.splitlines()[0]))


def load(args: argparse.Namespace, method: str, *overrides: str) -> Config:
    """The preset with one method, the caller's overrides, and the measurement's own, which win."""
    return config.load(args.preset, method, [*args.set, *overrides])


@contextmanager
def borrowed_stages(args: argparse.Namespace) -> Iterator[Path]:
    """A temporary runs root in which the stages before RL link to the real ones."""
    cfg = load(args, args.method)
    with TemporaryDirectory() as root:
        for stage in ("data", "sft"):
            source = runs.require(runs.folder(cfg, stage, args.runs) / "done", stage).parent
            link = runs.folder(cfg, stage, root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())
        yield Path(root)


@contextmanager
def generated_by(trainer: Any = None) -> Iterator[None]:
    """Inside, the RL stage builds `trainer` instead of `rl.in_process_trainer.InProcessTrainer`; None changes nothing."""
    import rl.train

    chosen: Any = rl.train.InProcessTrainer
    rl.train.InProcessTrainer = chosen if trainer is None else trainer  # type: ignore[misc]
    try:
        yield
    finally:
        rl.train.InProcessTrainer = chosen  # type: ignore[misc]


def with_padded_rows(trainer: type[Any]) -> type[Any]:
    """`trainer` with TRL's padded rows in its log-prob passes, whatever the configuration says."""

    class Padded(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "rows": "trl"})

    return Padded


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(values: Sequence[float]) -> float:
    """Median; 0 without values."""
    return statistics.median(values) if values else 0.0


def spread(values: Sequence[float], form: str) -> str:
    """Median, with the lowest and highest value in brackets where there are several."""
    middle = format(median(values), form)
    return f"{middle} ({min(values):{form}}–{max(values):{form}})" if len(values) > 1 else middle


def ratio(values: Sequence[float], base: Sequence[float], form: str = ".2f") -> str:
    """The ratio of the medians, with the lowest and highest ratio of a round in brackets; a dash where the base is 0.

    Raises:
        ValueError: not as many rounds of both.
    """
    rounds = [value / one for value, one in zip(values, base, strict=True) if one]
    if len(rounds) < len(values) or not rounds:
        return "–"
    middle = format(median(values) / median(base), form)
    return f"{middle} ({min(rounds):{form}}–{max(rounds):{form}})" if len(rounds) > 1 else middle


def show(title: str, words: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print one section: heading, sentence, table."""
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(headings))) + "|"
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (headings, *rows)]
    print("\n".join([f"## {title}", "", words, "", lines[0], rule, *lines[1:], ""]), flush=True)
