"""Kill each stage of the smoke preset with SIGKILL while it works, rerun `make demo`, and check that nothing is broken.

For each stage in turn: start `make demo PRESET=smoke` in its own process group, wait until that stage writes, and kill the
group. The last, undisturbed `make demo` must end with code 0. Every stage must be done, metrics.jsonl must have every RL step
once, every answer must be scored once, and no jsonl file may hold an id twice or a torn line. Prints one line per stage; exit
code 1 if a check fails. Deletes runs/smoke and data/smoke first.

Command: `python scripts/kill_and_resume.py` (takes the time of `make smoke` plus start-up per stage).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

RUN, DATA = Path("runs/smoke"), Path("data/smoke")
LOG = Path("runs/kill.log")
# stage folder -> (file or folder that changes while the stage works, most seconds to wait after that)
STAGES = {
    "world": ("written.jsonl", 0.2),
    "data": ("difficulty.jsonl", 1.0),
    "mcts-parts/1-of-2": ("trees.jsonl", 0.1),
    "mcts": ("trees.jsonl", 1.0),
    "sft": ("checkpoints", 0.5),
    "rl-grpo-t": ("checkpoints", 1.0),
    "rl-fgrpo": ("metrics.jsonl", 1.0),
    "eval/backbone-cot": ("generations.jsonl", 0.5),
    "eval/fgrpo": ("generations.jsonl", 0.5),
}
LIMIT_SECONDS = 600.0


def demo() -> subprocess.Popen[bytes]:
    """Start `make demo PRESET=smoke` in its own process group, with its output in runs/kill.log."""
    with LOG.open("ab") as log:
        return subprocess.Popen(["make", "demo", "PRESET=smoke"], stdout=log, stderr=log, start_new_session=True)


def state(path: Path) -> object:
    """A value that changes when `path` is written: names in a folder, size of a file, None if it is missing."""
    try:
        return sorted(p.name for p in path.iterdir()) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return None


def kill_in(stage: str, sign: str, wait: float, rng: random.Random) -> str:
    """Run until `stage` writes, wait a random moment, and kill the group; returns when it was killed.

    Raises:
        RuntimeError: make ended by itself, or the stage did not start in time.
    """
    path, done = RUN / stage / sign, RUN / stage / "done"
    before, started = state(path), time.monotonic()
    process = demo()
    try:
        while not done.exists() and state(path) in (before, None, 0, []):
            if process.poll() is not None:
                raise RuntimeError(f"make demo ended with {process.returncode} before {stage} started; see {LOG}")
            if time.monotonic() - started > LIMIT_SECONDS:
                raise RuntimeError(f"{stage} did not start within {LIMIT_SECONDS:g} s; see {LOG}")
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, wait))
        return "after its end" if done.exists() else "while it worked"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def faults(path: Path) -> list[str]:
    """Faults of a jsonl file: torn lines, and ids (or steps) that occur more than once."""
    counts: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            item = json.loads(line)
        except ValueError:
            return [f"{path}: line {number + 1} is not JSON"]
        counts[str(item.get("id", item.get("step", number)))] += 1
    twice = [key for key, count in counts.items() if count > 1]
    return [f"{path} holds twice: {', '.join(twice[:5])}"] if twice else []


def values(path: Path, key: str) -> list[object]:
    """`key` of every line."""
    return [json.loads(line)[key] for line in path.read_text(encoding="utf-8").splitlines()]


def gaps() -> list[str]:
    """Losses: RL steps without a line, answers without a score."""
    lost = []
    for path in RUN.glob("rl-*/metrics.jsonl"):
        steps = values(path, "step")
        if steps != list(range(1, len(steps) + 1)):
            lost.append(f"{path} has the steps {steps}")
    for path in RUN.glob("eval/*/generations.jsonl"):
        if values(path, "id") != values(path.with_name("scores.jsonl"), "id"):
            lost.append(f"{path} and its scores differ")
    return lost


def main() -> None:
    """Kill, resume, check."""
    shutil.rmtree(RUN, ignore_errors=True)
    shutil.rmtree(DATA, ignore_errors=True)
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    rng = random.Random(0)
    for stage, (sign, wait) in STAGES.items():
        print(f"killed {stage} {kill_in(stage, sign, wait, rng)}", flush=True)
    code = demo().wait()
    problems = [f"make demo ended with {code}; see {LOG}"] if code else []
    problems += [f"{stage} is not done" for stage in STAGES if not (RUN / stage / "done").exists()]
    files = [path for path in sorted(RUN.rglob("*.jsonl")) if ".superseded" not in path.parts]
    torn = [fault for path in files for fault in faults(path)]
    problems += torn or gaps()
    print("\n".join(problems) or "complete: every stage is done, nothing is lost, nothing occurs twice")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
