"""Kill each stage of the smoke preset at chosen file-system changes, resume it, and compare with an undisturbed run.

A change is a rename, a deletion, a new folder, or an appended line (of which half is written). For each stage in turn: run it
once and count its changes; then, for evenly spaced changes, run it from the same start in a child process that kills itself with
SIGKILL just before that change, and run it again to the end. The stage's folder must then be equal byte for byte, times aside, and hold
no left-over. Prints one line per stage and per fault; exit code 1 if there is a fault.

Command: `python scripts/kill_at_changes.py [--stages world data] [--kills 10]` (minutes per stage; writes to runs/kill).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fgrpo import files
from fgrpo.config import load

TOP = Path("runs/kill").absolute()
ROOT, START, WHOLE = TOP / "runs", TOP / "start", TOP / "whole"
TIMED = ("manifest.json", "done", ".hashes.json", "training_args.bin", "checksums.json", "files.jsonl")
SECONDS = ("seconds", "runtime", "per_second", "step_time")


def config(method: str = "grpo-t") -> Any:
    """The smoke preset below the work folder."""
    return load("smoke", method, [f"data.root={TOP / 'runs' / 'data'}", "eval.limit=4", "rl.keep_checkpoints=1"])


def stages() -> dict[str, Callable[[], object]]:
    """{stage folder: what runs the stage}; imports torch."""
    from data_curation import run as data
    from eval import run as evaluation
    from mcts import run as mcts
    from miniworld.write import __main__ as world
    from rl import train as rl
    from sft import train as sft

    return {
        "world": lambda: world.write_world(config(), ROOT),
        "data": lambda: data.curate(config(), ROOT),
        "mcts": lambda: mcts.distil(config(), ROOT),
        "sft": lambda: sft.train(config(), ROOT),
        "rl-grpo-t": lambda: rl.train(config(), ROOT),
        "eval/grpo-t": lambda: evaluation.evaluate(config(), "grpo-t", ["mmvp", "cvb_2d"], ROOT),
    }


def in_child(work: Callable[[], object], kill_at: int | None) -> tuple[int, int]:
    """(exit status of a child process that does `work`, number of changes it made). It dies before change `kill_at`."""
    log = (TOP / "child.log").open("ab")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        counter = _arm(kill_at)
        code = 1
        try:
            work()
            code = 0
        finally:  # no exit handlers of the parent
            if code:
                traceback.print_exc()
            os.write(writing, str(counter["changes"]).encode())
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        changes = told.read()
    return os.waitstatus_to_exitcode(status), int(changes or 0)


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
    return counter


def content(folder: Path) -> dict[str, object]:
    """{file: its content without times} of a stage's folder."""
    out: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in TIMED):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            out[name] = pq.read_table(path).to_pylist()
        elif path.name in ("metrics.jsonl", "trainer_state.json", "best.json"):
            out[name] = [_untimed(json.loads(line)) for line in _documents(path)]
        else:
            out[name] = path.read_bytes()
    return out


def _documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(word in k for word in SECONDS)}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def kills_of(stage: str, work: Callable[[], object], count: int) -> list[str]:
    """Faults of `count` kills of a stage; leaves the folder of the undisturbed run."""
    for old in (START, WHOLE):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(ROOT, START, symlinks=True) if ROOT.exists() else START.mkdir(parents=True)
    code, changes = in_child(work, None)
    if code:
        return [f"{stage}: ended with {code}; see {TOP / 'child.log'}"]
    ROOT.rename(WHOLE)
    expected, problems = content(WHOLE / "smoke" / stage), []
    points = sorted({1 + k * changes // count for k in range(count)})
    for point in points:
        shutil.copytree(START, ROOT, symlinks=True)
        killed, _ = in_child(work, point)
        ended, _ = in_child(work, None)
        found = content(ROOT / "smoke" / stage)
        wrong = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
        left = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.part")]
        if killed != -signal.SIGKILL or ended or wrong or left:
            problems.append(f"{stage}, change {point}: killed {killed}, resumed {ended}, differs {wrong}, left {left}")
        shutil.rmtree(ROOT)
    WHOLE.rename(ROOT)
    print(f"{stage}: {changes} changes, {len(points)} kills, {len(problems)} faults", flush=True)
    return problems


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", help="stages to kill (default: all); those before them run undisturbed")
    parser.add_argument("--kills", type=int, default=10, help="kills per stage (default: 10)")
    args = parser.parse_args()
    shutil.rmtree(TOP, ignore_errors=True)
    TOP.mkdir(parents=True)
    problems: list[str] = []
    for stage, work in stages().items():
        if args.stages is None or stage in args.stages:
            problems += kills_of(stage, work, args.kills)
        elif in_child(work, None)[0]:
            sys.exit(f"{stage} failed; see {TOP / 'child.log'}")
    print("\n".join(problems) or "complete: every stage equals an undisturbed one, and nothing is left over")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
