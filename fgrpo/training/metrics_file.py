"""A training stage's metrics.jsonl: one line per log entry, truncated on resume, completed where lines were lost.

A checkpoint also holds the log up to its step (transformers' `log_history`). If a resumed run finds fewer lines in the file
than in that log (deleted, truncated, damaged), it restores them from there and reports it. So no figure over the steps of a
run silently starts late.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.files import json_line, read_items, write_jsonl

NAME = "metrics.jsonl"
NOT_FINITE = "not_finite"  # {step: cause} of skipped steps, or of the one that stopped the run
SUMMARY_KEY = "train_runtime"  # in transformers' last log entry, which belongs to no step


class MetricsFile:
    """The file `folder`/metrics.jsonl, opened for lines after optimizer step `step`."""

    def __init__(self, folder: Path, step: int, history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Open the file. Lines after `step` are dropped, since those steps run again; lost lines come from `history`."""
        path = folder / NAME
        lines, restored = restore_lines(_readable(path), step, history)
        if restored:
            print(
                f"{path} lacked the lines of {len(restored)} steps up to step {step} ({_shortened(restored)}); "
                "they were restored from the checkpoint's own log",
                file=sys.stderr,
            )
        write_jsonl(path, lines)
        self._out = path.open("a", encoding="utf-8")

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite become null (JSON has no NaN)."""
        self._out.write(json_line({key: plain(value) for key, value in line.items()}) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._out.close()


def skipped_steps(folder: Path) -> int:
    """Optimizer steps that were skipped because a number was not finite, by the file's own account."""
    return sum(len(line.get(NOT_FINITE) or ()) for line in _readable(folder / NAME))


def restore_lines(
    lines: Sequence[Mapping[str, Any]], step: int, history: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[int]]:
    """(the lines up to `step` in order, the steps whose lines come from `history`)."""
    in_file, in_history = _by_step(lines, step), _by_step(history, step)
    skips = {n: [line for line in of_step if _is_skip(line)] for n, of_step in in_file.items()}
    lost = [n for n in sorted(in_history) if len(in_file.get(n, ())) - len(skips.get(n, ())) < len(in_history[n])]
    complete = {**in_file, **{n: [*skips.get(n, ()), *in_history[n]] for n in lost}}
    return [line for n in sorted(complete) for line in complete[n]], lost


def checked(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the file. Raises TypeError if its step is no whole number, or its skipped steps no mapping."""
    if type(line.get("step", 0)) is not int or not isinstance(line.get(NOT_FINITE) or {}, dict):
        raise TypeError(f"step {line.get('step')!r:.40}, {NOT_FINITE} {line.get(NOT_FINITE)!r:.40}")
    return line


def plain(value: Any) -> Any:
    """`value`, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_skip(line: Mapping[str, Any]) -> bool:
    """Whether a line reports skipped steps alone; no log of a checkpoint has it."""
    return NOT_FINITE in line and line.keys() <= {"step", NOT_FINITE}


def _by_step(lines: Sequence[Mapping[str, Any]], last: int) -> dict[int, list[dict[str, Any]]]:
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "step" in line and line["step"] <= last and SUMMARY_KEY not in line:
            steps[line["step"]].append({"step": line["step"], **{key: plain(value) for key, value in line.items()}})
    return steps


def _readable(path: Path) -> list[dict[str, Any]]:
    """Lines of the file before the first broken one; none if the file is missing."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        try:
            for line in read_items(path, checked, "line of metrics"):
                lines.append(line)
        except UserError as error:
            print(f"{error}; resuming with the lines before it", file=sys.stderr)
    return lines


def _shortened(steps: Sequence[int]) -> str:
    first = ", ".join(map(str, steps[:5]))
    return first if len(steps) <= 5 else f"{first}, …, {steps[-1]}"
