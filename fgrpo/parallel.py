"""Runs commands of one stage in parallel on this machine, one process each, each with its own line for a progress bar."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from fgrpo.cli import SIDE_BY_SIDE
from fgrpo.process_guard import end_with_parent


def run(commands: Mapping[str, Sequence[str]], at_once: int) -> list[str]:
    """Run named commands, at most `at_once` at a time; returns the names of those that failed.

    No command keeps running after this process ends, however it ends (on Linux; elsewhere a killed process leaves them).

    OMP_NUM_THREADS, unless it is set, divides the cores among the commands: with more threads than cores, processes wait
    for each other at every matrix product.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // min(at_once, len(commands)))
    waiting, failed = list(commands), list[str]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    lines: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                line = min(set(range(at_once)) - set(lines.values()))  # of the terminal, for its progress bar
                lines[name] = line
                environment = {
                    "OMP_NUM_THREADS": str(threads),
                    **os.environ,
                    "TQDM_POSITION": str(line),
                    SIDE_BY_SIDE: "1",
                }
                running[name] = subprocess.Popen(commands[name], env=environment, preexec_fn=end_with_parent)
            for name, process in list(running.items()):
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                del running[name], lines[name]
                failed += [name] if process.returncode else []
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    return failed
