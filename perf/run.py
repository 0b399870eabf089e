"""Runs every benchmark, one process each, and writes docs/benchmarks.md: `make bench` (`python -m perf.run`).

The page is written when all have succeeded; `--only sampling,zero3` runs some and puts their sections in place of the page's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from fgrpo.cli import parser, run
from fgrpo.errors import UserError, unknown

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench` on {machine}, preset {preset}, not always all of it in one run. Figures are medians; ratios are what carries over to another machine.
"""
OF_PRESET = (
    "rl_step",
    "constraints",
    "sampling",
    "harness",
    "rollouts",
    "zero3",
    "pure",
)  # these take the stages' options
TREES = ("100", "1000", "10000")
ROWS = ("--rows", "10000", "100000", "--gigabytes", "1")  # a million: `python -m perf.stream`


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Every benchmark's module and options, by name."""
    options = ["--preset", args.preset, "--method", args.method, "--runs", args.runs]
    options += ["--set", *args.set] if args.set else []
    found = {name: [f"perf.{name}", *options] for name in OF_PRESET}
    found["search"] = ["perf.search", "--trees", *TREES]
    found["prior"] = ["perf.prior"]
    found["stream"] = ["perf.stream", *ROWS]
    found["judging"] = ["perf.judging"]
    return found


def section(name: str, command: list[str]) -> str:
    """What one benchmark prints. UserError if it fails (its own output has gone to standard error)."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"the benchmark {name} failed (see above); docs/benchmarks.md is as it was")
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return done.stdout


def sections(page: str) -> dict[str, str]:
    """The sections of a page by their headings, in order, each up to its last table: what stages print besides is left out."""
    found = {}
    for text in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        lines = text.strip().splitlines()
        rows = [n for n, line in enumerate(lines) if line.startswith("|")]
        found[lines[0]] = "\n".join(lines[: rows[-1] + 1] if rows else lines) + "\n"
    return found


def machine() -> str:
    """The machine in words, without its name."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {torch.cuda.device_count() or 'no'} GPU"


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        known = commands(args)
        chosen = args.only.split(",") if args.only else list(known)
        for name in chosen:
            if name not in known:
                raise unknown("benchmark", name, list(known))
        before = PAGE.read_text(encoding="utf-8") if args.only and PAGE.exists() else ""
        found = sections("\n".join(section(name, known[name]) for name in chosen))
        print("\n".join(found.values()))
        aside = PAGE.with_suffix(".part")
        head = HEAD.format(machine=machine(), preset=args.preset)
        aside.write_text("\n".join([head, *{**sections(before), **found}.values()]), encoding="utf-8")
        aside.replace(PAGE)

    arguments = parser("benchmarks, as ratios, into docs/benchmarks.md")
    arguments.add_argument("--only", metavar="NAME[,NAME]", help="these benchmarks; the page keeps its other sections")
    run(body, arguments)


if __name__ == "__main__":
    main()
