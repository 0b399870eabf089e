"""How long each stage of `make demo` takes, here and in other checkouts, one after the other on the same machine.

Command: `python -m perf.demo [--checkout FOLDER]` (about a quarter of an hour per checkout). Everything is written to a temporary
folder. The stages run as the demo runs them: the two RL methods side by side, the others after one another.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgrpo.errors import UserError
from perf.common import show
from perf.run import machine

HERE = Path(__file__).resolve().parent.parent
STAGES = {
    "miniature world": ["world"],
    "data": ["data"],
    "tree search": ["mcts"],
    "SFT": ["sft"],
    "RL, two methods side by side": ["-j2", "rl-grpo-t", "rl-fgrpo"],
    "evaluation of five models": ["eval"],
    "figures": ["figures"],
    "report": ["report"],
    "tables": ["tables"],
}


@dataclass(frozen=True)
class Times:
    """Wall-clock and CPU seconds of one stage."""

    wall: float
    cpu: float


def timed(command: Sequence[str]) -> Times:
    """Run a command to its end.

    Raises:
        UserError: it failed (its output is above).
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed (see above)")
    return Times(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def demo(checkout: Path, preset: str) -> dict[str, Times]:
    """The times of every stage, in an environment that is set up already."""
    with tempfile.TemporaryDirectory() as out:
        options = [f"PYTHON={sys.executable}", f"PRESET={preset}", f"RUNS={out}/runs", f"SET=data.root={out}/data"]
        make = ["make", "--no-print-directory", "-C", str(checkout), *options]
        return {stage: timed([*make, *targets]) for stage, targets in STAGES.items()}


def rows(by_checkout: dict[str, dict[str, Times]]) -> list[list[str]]:
    """Seconds by stage and in total, wall and CPU per checkout; with several, the wall time of the last over the first."""
    out = []
    for stage in (*STAGES, "all"):
        found = [
            of[stage] if stage in of else Times(sum(t.wall for t in of.values()), sum(t.cpu for t in of.values()))
            for of in by_checkout.values()
        ]
        cells = [f"{seconds:.1f}" for times in found for seconds in (times.wall, times.cpu)]
        ratio = [f"{found[-1].wall / found[0].wall:.2f}"] if len(found) > 1 else []
        out.append([stage, *cells, *ratio])
    return out


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--preset", default="mini")
    arguments.add_argument("--checkout", type=Path, help="another checkout, which is timed first")
    args = arguments.parse_args()
    places = {"before": args.checkout, "now": HERE} if args.checkout else {"now": HERE}
    found = {name: demo(place, args.preset) for name, place in places.items()}
    headings = ["stage", *(f"{name}, {kind}" for name in found for kind in ("wall", "CPU"))]
    words = f"Seconds of each stage on {machine()}, without set-up; preset {args.preset}."
    show("`make demo`", words, [*headings, "wall, ratio"] if len(found) > 1 else headings, rows(found))


if __name__ == "__main__":
    main()
