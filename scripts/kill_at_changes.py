"""Kill each stage of the smoke preset at chosen file-system changes, resume it, and compare with an undisturbed run.

A change is a rename, a deletion, a new folder, or an appended line or a small file (of which half is written). For each stage in
turn: run it once and count its changes; then, for changes drawn from equal parts of the run, run it from the same start in a child
process that kills itself with SIGKILL just before that change, and run it again to the end. The stage's folder must then be equal
byte for byte, times aside, and hold no left-over. Prints one line per stage and per fault; exit code 1 if there is a fault.

Command: `python -m scripts.kill_at_changes [--stages world data] [--kills 10] [--seed 0]` (minutes per stage; writes to runs/kill).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgrpo import files
from scripts.smoke_stages import Stage, content, in_child, stages

TOP = Path("runs/kill").absolute()
ROOT, START, WHOLE, LOG = TOP / "runs", TOP / "start", TOP / "whole", TOP / "child.log"


def _arm(kill_at: int | None) -> dict[str, int]:
    """Count file-system changes of this process, and die before number `kill_at`."""
    counter = {"changes": 0}

    def is_due() -> bool:
        counter["changes"] += 1
        return counter["changes"] == kill_at

    def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **more: Any) -> Any:
            if is_due():
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args, **more)

        return change

    for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))
    add = files.Appender.add

    def half(self: files.Appender, item: dict[str, Any]) -> None:
        if is_due():
            line = files.json_line(item)
            self._out.write(line[: len(line) // 2])
            self._out.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, item)

    files.Appender.add = half  # type: ignore[method-assign]
    for name in ("write_text", "write_bytes"):
        setattr(Path, name, _half_of(getattr(Path, name), is_due))
    return counter


def _half_of(write: Callable[..., int], is_due: Callable[[], bool]) -> Callable[..., int]:
    def change(path: Path, content: Any, *args: Any, **more: Any) -> int:
        if is_due():
            write(path, content[: len(content) // 2], *args, **more)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content, *args, **more)

    return change


def run(stage: Stage, kill_at: int | None = None) -> tuple[int, int]:
    """(exit status of the stage in a process that dies before change `kill_at`, number of changes it made)."""
    code, counter = in_child(stage.work, LOG, lambda: _arm(kill_at))
    return code, 0 if counter is None else counter["changes"]


def kills_of(name: str, stage: Stage, count: int, seed: int) -> list[str]:
    """Faults of `count` kills of a stage; leaves the folder of the undisturbed run."""
    for old in (START, WHOLE):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(ROOT, START, symlinks=True) if ROOT.exists() else START.mkdir(parents=True)
    code, changes = run(stage)
    if code:
        return [f"{name}: ended with {code}; see {LOG}"]
    ROOT.rename(WHOLE)
    expected, problems = content(WHOLE / "smoke" / stage.folder), []
    rng, count = random.Random(f"{name} {seed}"), min(count, changes)
    points = [rng.randint(1 + k * changes // count, (k + 1) * changes // count) for k in range(count)]
    reached = 0
    for point in points:
        shutil.copytree(START, ROOT, symlinks=True)
        killed, _ = run(stage, point)
        ended, _ = run(stage)
        found = content(ROOT / "smoke" / stage.folder)
        wrong = [file for file in sorted({*expected, *found}) if expected.get(file) != found.get(file)]
        left = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".part" in p.name]
        reached += killed == -signal.SIGKILL  # a run that writes its caches at other times may end before
        if killed not in (0, -signal.SIGKILL) or ended or wrong or left:
            problems.append(f"{name}, change {point}: killed {killed}, resumed {ended}, differs {wrong}, left {left}")
        shutil.rmtree(ROOT)
    WHOLE.rename(ROOT)
    print(f"| {name} | {changes} | {reached} | {len(problems)} | {', '.join(map(str, points))} |", flush=True)
    return problems


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", help="stages to kill (default: all); those before them run undisturbed")
    parser.add_argument("--kills", type=int, default=10, help="kills per stage (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of changes (default: 0)")
    args = parser.parse_args()
    shutil.rmtree(TOP, ignore_errors=True)
    TOP.mkdir(parents=True)
    problems: list[str] = []
    print("| stage | changes | kills | faults | killed before change |\n|---|---:|---:|---:|---|")
    for name, stage in stages(ROOT, "rl.keep_checkpoints=1").items():
        if args.stages is None or name in args.stages:
            problems += kills_of(name, stage, args.kills, args.seed)
        elif run(stage)[0]:
            sys.exit(f"{name} failed; see {LOG}")
    print("\n".join(problems) or "complete: every stage equals an undisturbed one, and nothing is left over")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
