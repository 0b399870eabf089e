"""Kill each stage of the smoke chain in its middle with SIGKILL, run `make demo` again, and check that nothing is broken.

For every stage in turn: start `make demo PRESET=smoke` in a process group of its own, wait until that stage has begun to
write, kill the whole group, and go on. The last, undisturbed `make demo` must end with code 0, every stage must be done,
and no jsonl file may hold an id twice. Prints one line a stage; exit code 1 when something is wrong.

Command: `python scripts/kill_and_resume.py` (takes the smoke chain's time plus start-up per stage).
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

RUN = Path("runs/smoke")
# stage folder -> a file that shows the stage is at work
STAGES = {
    "world": "config.json",
    "data": "difficulty.jsonl",
    "mcts": "trees.jsonl",
    "sft": "checkpoints",
    "rl-grpo-t": "metrics.jsonl",
    "rl-fgrpo": "metrics.jsonl",
    "eval/backbone-cot": "generations.jsonl",
    "eval/fgrpo": "generations.jsonl",
}
LIMIT_SECONDS = 600.0


def demo() -> subprocess.Popen[bytes]:
    """`make demo PRESET=smoke` in a process group of its own, its output kept in runs/kill.log."""
    with open("runs/kill.log", "ab") as log:
        return subprocess.Popen(["make", "demo", "PRESET=smoke"], stdout=log, stderr=log, start_new_session=True)


def kill_in(stage: str, sign: str, rng: random.Random) -> str:
    """Run until `stage` has begun, wait a random moment, kill everything; says what was killed."""
    process = demo()
    started = time.monotonic()
    while process.poll() is None:
        if (RUN / stage / "done").exists():
            break
        path = RUN / stage / sign
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            time.sleep(rng.uniform(0.0, 1.0))
            break
        if time.monotonic() - started > LIMIT_SECONDS:
            break
        time.sleep(0.02)
    finished = (RUN / stage / "done").exists()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "after its end" if finished else "in its middle"


def twice(path: Path) -> list[str]:
    """Ids that stand more than once in a jsonl file (or steps, for metrics)."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter(str(item.get("id", item.get("step", number))) for number, item in enumerate(items))
    return [key for key, count in counts.items() if count > 1]


def main() -> None:
    """Kill, resume, check."""
    shutil.rmtree(RUN, ignore_errors=True)
    Path("runs").mkdir(exist_ok=True)
    rng = random.Random(0)
    for stage, sign in STAGES.items():
        print(f"killed {stage} {kill_in(stage, sign, rng)}", flush=True)
    code = demo().wait()
    problems = [f"make demo ended with {code}"] if code else []
    problems += [f"{stage} is not done" for stage in STAGES if not (RUN / stage / "done").exists()]
    for path in sorted(RUN.rglob("*.jsonl")):
        if ".superseded" not in path.parts and (found := twice(path)):
            problems.append(f"{path} holds twice: {', '.join(found[:5])}")
    print("\n".join(problems) or "complete: every stage is done, nothing stands twice")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
