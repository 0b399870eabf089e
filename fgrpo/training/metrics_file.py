"""A training stage's metrics.jsonl: one line a log entry, cut back on resume, and whole again where lines were lost.

A checkpoint carries the log up to its step too (transformers' `log_history`). So when a run goes on from a checkpoint and the
file is shorter than the checkpoint's own log (deleted, cut, damaged), the lost lines are taken from there, and it says so:
figures over the run's steps do not silently begin late.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.files import json_line, read_jsonl, write_jsonl

NAME = "metrics.jsonl"
_AT_THE_END = "train_runtime"  # transformers' last entry: no step's


class MetricsFile:
    """The file `folder`/metrics.jsonl, opened to go on after optimiser step `step`."""

    def __init__(self, folder: Path, step: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Open it: lines after `step` are forgotten (those steps are done again), lost ones come from `history`."""
        path = folder / NAME
        lines, lost = mended(_readable(path), step, history)
        if lost:
            words = f"{path} lacked the lines of {len(lost)} steps up to step {step} ({_shown(lost)}); "
            print(words + "they were taken from the checkpoint's own log", file=sys.stderr)
        write_jsonl(path, lines)
        self._out = path.open("a", encoding="utf-8")

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line; what is not a finite number becomes null (JSON has no NaN)."""
        self._out.write(json_line({key: plain(value) for key, value in line.items()}) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Close the file; nothing happens the second time."""
        self._out.close()


def mended(
    lines: Sequence[Mapping[str, Any]], step: int, history: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[int]]:
    """(the lines up to `step` in order, the steps whose lines `history` had to give)."""
    there, known = _by_step(lines, step), _by_step(history, step)
    lost = [n for n in sorted(known) if len(there.get(n, ())) < len(known[n])]
    chosen = {**there, **{n: known[n] for n in lost}}
    return [line for n in sorted(chosen) for line in chosen[n]], lost


def plain(value: Any) -> Any:
    """`value`, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_step(lines: Sequence[Mapping[str, Any]], last: int) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "step" in line and line["step"] <= last and _AT_THE_END not in line:
            found[line["step"]].append({"step": line["step"], **{key: plain(value) for key, value in line.items()}})
    return found


def _readable(path: Path) -> list[dict[str, Any]]:
    """Lines of the file up to the first that is broken; none if it is not there."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        try:
            for line in read_jsonl(path):
                lines.append(line)
        except UserError as error:
            print(f"{error}; going on with the lines before it", file=sys.stderr)
    return lines


def _shown(steps: Sequence[int]) -> str:
    first = ", ".join(map(str, steps[:5]))
    return first if len(steps) <= 5 else f"{first}, …, {steps[-1]}"
