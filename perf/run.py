"""Runs every measurement, one process each, and writes docs/benchmarks.md: `make bench` (`python -m perf.run`).

The page is written after each measurement, whose sections replace those of the same heading; one that fails is named at the end, and
the others go on. `--only sampling,zero3` runs some. Other evaluation harnesses are measured where PEERS names virtual environments that have them (`perf.peers`).
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
from fgrpo.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Performance

Written by `make bench` on {machine}, preset {preset}, some sections in separate runs. Figures are medians; only ratios carry over to another machine.
"""
OF_PRESET = (
    "rl_step",
    "constraints",
    "constraints_cost",
    "probes",
    "sampling",
    "harness",
    "peers_harness",
    "rollouts",
    "zero3",
    "pure",
)  # these take the options of the stages
TREES = ("100", "1000", "10000")
GPU = "On a GPU"  # headings of `make gpu-check` (perf.gpu), which has the page's GPU sections
SLOW = ("demo",)  # a quarter of an hour: only when named
ROWS = ("--rows", "10000", "100000", "--gigabytes", "1")  # a million: `python -m perf.stream`


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """Module and options of every measurement, by name."""
    options = ["--preset", args.preset, "--method", args.method, "--runs", args.runs]
    options += ["--set", *args.set] if args.set else []
    out = {name: [f"perf.{name}", *options] for name in OF_PRESET}
    out["shared_prefix"] = ["perf.shared_prefix"]
    out["padding"] = ["perf.padding"]
    out["search"] = ["perf.search", "--trees", *TREES]
    out["peers_search"] = ["perf.peers_search"]
    out["prior"] = ["perf.prior"]
    out["stream"] = ["perf.stream", *ROWS]
    out["judging"] = ["perf.judging"]
    out["demo"] = ["perf.demo", "--preset", args.preset]
    out["judging_ordinary"] = ["perf.judging_ordinary"]
    return out


def section(name: str, command: list[str]) -> str:
    """The text that one measurement prints.

    Raises:
        UserError: it failed; its own message went to standard error.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"the measurement {name} failed (see above); its sections of docs/benchmarks.md are unchanged")
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return done.stdout


def sections(page: str) -> dict[str, str]:
    """The sections of a page by heading, in order, each up to its last table row; other output of stages is dropped."""
    out = {}
    for text in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]:
        lines = text.strip().splitlines()
        rows = [n for n, line in enumerate(lines) if line.startswith("|")]
        out[lines[0]] = "\n".join(lines[: rows[-1] + 1] if rows else lines) + "\n"
    return out


def merged(head: str, page: str, fresh: dict[str, str]) -> str:
    """A page with `head`, the sections of `page`, and `fresh` ones in place of those of their headings or after them."""
    return "\n".join([head, *{**sections(page), **fresh}.values()])


def publish(text: str) -> None:
    """Put the sections of `text` into docs/benchmarks.md; its other sections and its head stay as they are."""
    before = PAGE.read_text(encoding="utf-8")
    write_atomic(PAGE, merged(before.split("\n## ", 1)[0].rstrip("\n") + "\n", before, sections(text)))


def machine() -> str:
    """A description of the machine, without its name."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {torch.cuda.device_count() or 'no'} GPU"


def measured(name: str, command: list[str], head: str) -> dict[str, str]:
    """Run one measurement and put its sections into the page; returns them, none if it failed."""
    try:
        fresh = sections(section(name, command))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return {}
    print("\n".join(fresh.values()), flush=True)
    write_atomic(PAGE, merged(head, _page(), fresh))
    return fresh


def _page() -> str:
    return PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        known = commands(args)
        chosen = args.only.split(",") if args.only else [name for name in known if name not in SLOW]
        for name in chosen:
            if name not in known:
                raise unknown("measurement", name, list(known))
        head = HEAD.format(machine=machine(), preset=args.preset)
        found = {name: measured(name, known[name], head) for name in chosen}
        if failed := [name for name, fresh in found.items() if not fresh]:
            names = ", ".join(failed)
            raise UserError(f"{len(failed)} measurements failed (see above): {names}; repeat them with --only")
        if not args.only:  # sections that nothing measures any more
            of_gpu = {heading: text for heading, text in sections(_page()).items() if heading.startswith(f"## {GPU}")}
            fresh = {heading: text for one in found.values() for heading, text in one.items()}
            write_atomic(PAGE, merged(head, "".join(of_gpu.values()), fresh))

    arguments = parser("measure speed, as ratios, into docs/benchmarks.md")
    arguments.add_argument("--only", metavar="NAME[,NAME]", help="measure these; the page keeps its other sections")
    run(body, arguments)


if __name__ == "__main__":
    main()
