"""Runs checks one after the other, each with a time limit of its own; results are files, so that another call goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.gpu.checks import CHECKS, Check
from perf.gpu.result import Result, read
from perf.gpu.setting import Setting

FINISHED = ("passed", "not applicable")  # the others run again
PATIENCE_S = 10.0
CPU_LIKELY_S = 20
LOG_LINES = 3


@dataclass(frozen=True)
class Call:
    """One call: which checks, where results go, and how many seconds it may take."""

    setting: Setting
    results: Path
    limit_s: float
    again: bool = False

    def file(self, name: str) -> Path:
        """The result file of a check."""
        return self.results / f"{name}.json"


def run_all(call: Call, chosen: Sequence[Check] = CHECKS) -> list[Result]:
    """Run what has no finished result yet, as far as time allows; returns all results that there are, in order."""
    began = time.monotonic()
    call.results.mkdir(parents=True, exist_ok=True)
    waiting = [check for check in chosen if call.again or not is_finished(read(call.file(check.name)))]
    for done in (check for check in chosen if check not in waiting):
        print(f"{done.name}: {_line(read(call.file(done.name)))} (from an earlier call)", flush=True)
    for place, check in enumerate(waiting, start=1):
        left = call.limit_s - (time.monotonic() - began)
        likely = likely_s(call.setting, check)
        to_come = sum(likely_s(call.setting, other) for other in waiting[place - 1 :])
        if left < likely:
            print(
                f"{check.name}: left for another call: it takes about {likely} s, and {left:.0f} s are left", flush=True
            )
            continue
        print(
            f"[{place}/{len(waiting)}] {check.name}: {check.about}; about {likely} s of {to_come} s to come, {left:.0f} s allowed",
            flush=True,
        )
        result = run_one(call, check, min(left, check.limit_s))
        print(f"  {_line(result)} ({result.seconds:.0f} s)", flush=True)
    return [found for check in CHECKS if (found := read(call.file(check.name))) is not None]


def likely_s(setting: Setting, check: Check) -> int:
    """Seconds that a check likely takes."""
    return check.likely_s if setting.shape == "true" else CPU_LIKELY_S


def is_finished(result: Result | None) -> bool:
    """Whether a check need not run again."""
    return result is not None and result.state in FINISHED


def command(call: Call, check: Check) -> list[str]:
    """The command line of a check's process."""
    with_torchrun = check.through_torchrun and call.setting.device == "cuda"
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"] if with_torchrun else []
    words = [check.name, "--result", str(call.file(check.name)), *call.setting.words()]
    return [sys.executable, *starter, "-m", "perf.gpu.worker", *words]


def run_one(call: Call, check: Check, limit_s: float) -> Result:
    """Run a check in a process group of its own; past `limit_s` the group is ended. Its result is stored in any case."""
    file, log = call.file(check.name), call.results / f"{check.name}.log"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(call, check),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(call.setting),
        )
        try:
            process.wait(timeout=limit_s)
            result = read(file) or Result(check.name, "failed", f"it ended with {process.returncode}: {tail(log)}")
        except subprocess.TimeoutExpired:
            result = Result(check.name, "timed out", f"not finished after {limit_s:.0f} s: {tail(log)}")
        finally:
            _end(process)
    result.seconds = time.monotonic() - began
    result.write(file)
    return result


def environment(setting: Setting) -> dict[str, str]:
    """The environment of a check: offline, and without GPUs on a CPU."""
    own = {
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if setting.device == "cpu":
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return {
        **os.environ,
        **own,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
    }


def tail(log: Path) -> str:
    """The last lines of a log in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:]
    return " / ".join(line.strip()[:200] for line in lines) or "no output"


def _line(result: Result | None) -> str:
    return "no result" if result is None else f"{result.state}: {result.finding}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group that this module started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue
