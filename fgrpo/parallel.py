"""Runs commands of one stage in parallel on this machine, one process each, each with its own line for a progress bar."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from fgrpo.cli import SIDE_BY_SIDE
from fgrpo.errors import UserError
from fgrpo.installed import importable
from fgrpo.process_guard import end_with_parent


def command(module: str, args: argparse.Namespace) -> list[str]:
    """The command that runs `module` with the options that every stage shares (`fgrpo.cli.parser`), as in `args`."""
    shared = ["--preset", args.preset, "--method", args.method, "--runs", args.runs]
    return [sys.executable, "-m", importable(module), *shared, *(["--set", *args.set] if args.set else [])]


def run_shards(module: str, args: argparse.Namespace, what: str) -> None:
    """Run the stage `module` in `args.jobs` processes, one shard of its items each (`fgrpo.shards`).

    Args:
        what: the stage's name in a message.

    Raises:
        UserError: a shard failed.
    """
    names = [f"{n}/{args.jobs}" for n in range(1, args.jobs + 1)]
    failed = run({name: [*command(module, args), "--shard", name] for name in names}, args.jobs)
    if failed:
        raise UserError(f"shard {failed[0]} of the {what} failed (see above). Fix the cause, then rerun to resume")


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
    with_parent = partial(end_with_parent, os.getpid())
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
                running[name] = subprocess.Popen(commands[name], env=environment, preexec_fn=with_parent)
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
