"""Mutation sampling: how many small faults in a module its tests notice. Not part of CI; Linux only (fork).

Draws a seeded sample of faults (`mutants`) per module, applies one at a time to a copy of the checkout and runs the tests that the
map names. The checkout itself never changes. Results are appended per mutant, so an interrupted run resumes.

    python scripts/mutation_sample.py --per-module 12 --out /tmp/mutation/results.jsonl

The map is JSON: {"modules": {"rl/train.py": ["tests/rl/test_stage.py"]}, "preload": ["torch"], "cosmetic": ["color"],
"skip_names": ["STYLE"]}. `preload` names packages to import once, before each test process is forked; `cosmetic` names keyword
arguments and `skip_names` assigned names whose values are not mutated.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutants import mutants, sample


def copy_checkout(source: Path, tree: Path) -> None:
    """Make `tree` a copy of the files of `source` that git knows or would know, with its environment linked in."""
    shutil.rmtree(tree, ignore_errors=True)
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    for name in subprocess.run(command, cwd=source, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (source / name).is_file() and not name.startswith(".venv"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, tree / name)
    if (source / ".venv").exists():
        (tree / ".venv").symlink_to((source / ".venv").resolve())
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-x", r"\.venv", "."], cwd=tree, check=True)


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> tuple[str, float, str]:
    """("passed" | "failed" | "timeout", seconds, last lines of output) of one pytest run in a forked process."""
    began, log = time.monotonic(), tree / ".mutation.log"
    child = os.fork()
    if child == 0:  # a process group of its own, which is killed as one
        os.setsid()
        os.chdir(tree)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.path[:] = [str(tree), *sys.path[1:]]
        import pytest

        code = pytest.main(["-x", "-q", "--tb=line", "-p", "no:randomly", "-p", "no:cacheprovider", *tests])
        sys.stdout.flush()
        os._exit(int(code))
    state = "timeout"
    while state == "timeout" and time.monotonic() - began < timeout:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            state = "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if state == "timeout":
        os.waitpid(child, 0)
    return state, time.monotonic() - began, log.read_text(errors="replace")[-600:]


def measure(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Run the sample; results go to `args.out`, one line per mutant."""
    tree = args.tree.resolve()
    copy_checkout(Path.cwd(), tree)
    for package in plan.get("preload", ()):
        importlib.import_module(package)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {json.loads(line)["id"] for line in lines}
    for module, tests in plan["modules"].items():
        source = (tree / module).read_bytes()
        for stale in (tree / module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
            stale.unlink()
        candidates = mutants(module, source, set(plan.get("cosmetic", ())), set(plan.get("skip_names", ())))
        todo = [m for m in sample(candidates, source, args.per_module, args.seed) if m.id not in done]
        if not todo:
            continue
        state, seconds, tail = run_tests(tree, tests, args.timeout)
        if state != "passed":
            raise SystemExit(f"{module}: its tests do not pass without a fault ({state})\n{tail}")
        print(f"{module}: {len(todo)} of {len(candidates)} mutants, {seconds:.0f} s without a fault", flush=True)
        for mutant in todo:
            (tree / module).write_bytes(mutant.apply(source))
            try:
                state, spent, tail = run_tests(tree, tests, min(args.timeout, 30 + 4 * seconds))
            finally:
                (tree / module).write_bytes(source)
            result = {"passed": "survived", "failed": "killed"}.get(state, state)
            line = {
                "id": mutant.id,
                "module": module,
                "operator": mutant.operator,
                "line": mutant.line,
                "result": result,
            }
            line |= {"seconds": round(spent, 1), "diff": mutant.diff(source), "tail": tail if state == "failed" else ""}
            with args.out.open("a") as out:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


def report(out: Path) -> str:
    """Markdown: counts per module, and the survivors."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    lines = ["| module | mutants | killed | timed out | survived | rate |", "|---|---:|---:|---:|---:|---:|"]
    for module in [*dict.fromkeys(row["module"] for row in rows), "all"]:
        counts = Counter(row["result"] for row in rows if module in ("all", row["module"]))
        cells = " | ".join(str(counts[name]) for name in ("killed", "timeout", "survived"))
        total = counts.total()
        lines.append(f"| {module} | {total} | {cells} | {100 * (total - counts['survived']) / total:.0f}% |")
    for row in rows:
        if row["result"] == "survived":
            lines.append(
                f"\n{row['module']}:{row['line']} ({row['operator']}, {row['id']})\n```diff\n{row['diff']}\n```"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line; run it in the root of the checkout, with the Python of its environment."""
    parser = argparse.ArgumentParser(description="mutation sampling (see the head of this file)")
    parser.add_argument("--map", type=Path, default=Path(__file__).with_name("mutation_map.json"))
    parser.add_argument("--only", nargs="*", help="modules of the map")
    parser.add_argument("--per-module", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of one test run at most")
    parser.add_argument(
        "--tree", type=Path, default=Path("/tmp/mutation/tree"), help="where the copy is made; replaced"
    )
    parser.add_argument("--out", type=Path, required=True, help="results (jsonl)")
    args = parser.parse_args()
    plan = json.loads(args.map.read_text())
    plan["modules"] = {m: t for m, t in plan["modules"].items() if not args.only or m in args.only}
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a fault of the same size in the same second would run from stale bytecode
    measure(args, plan)
    args.out.with_suffix(".md").write_text(report(args.out))
    print(report(args.out))


if __name__ == "__main__":
    main()
