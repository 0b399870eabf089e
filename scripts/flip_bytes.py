"""Flip one byte of each artefact that a later stage, or the same stage later, reads, and say what becomes of it.

Runs the smoke preset once. Then, for each file of each case below: restores the run, flips one byte at a seeded place, runs the
reader in a child process, and compares the reader's folder with that of a run without damage. A file is

- named: the reader ends with a message that names it, before it uses it;
- repaired: the reader names it and goes on without it (the data set written again, the checkpoint before it), with equal results;
- harmless: the results are equal without a word (a blank, a time, a cache that is read anew);
- SILENT, UNNAMED or TRACEBACK: a fault.

Prints one line per case and per fault; exit code 1 if there is a fault.

Command: `python -m scripts.flip_bytes [--cases sft rl] [--flips 2] [--seed 0]` (writes to runs/flips).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.files import read_jsonl
from scripts.smoke_stages import MODEL, Stage, content, in_child, stages
from tests.odd_server import MODEL as SERVED
from tests.odd_server import running

TOP = Path("runs/flips").absolute()
ROOT, WHOLE, STATES, LOG = TOP / "runs", TOP / "whole", TOP / "states", TOP / "child.log"
RL, EVAL = f"rl-{MODEL}", f"eval/{MODEL}"
KEEP_ALL = "rl.keep_checkpoints=null"
FAULTS = ("SILENT", "UNNAMED", "TRACEBACK")
MOST = 5  # files of one pattern


@dataclass(frozen=True)
class Case:
    """A reader, the files that it reads (patterns below the run root), and the state in which it reads them."""

    reader: str
    files: tuple[str, ...]  # "@file": the images that its rows name
    state: str = "whole"  # a folder of `STATES`, or the finished run
    without: tuple[str, ...] = ()  # folders and files below the preset's folder that are deleted first


def cases() -> dict[str, Case]:
    """The cases by name: what each stage reads when it starts, resumes, or is run again after its end."""
    world = ("data/train/*/**/*", "data/scenes.jsonl")
    everything = tuple(f"smoke/{f}/*.json" for f in ("world", "data", "mcts", "sft", RL, EVAL))
    return {
        "world, again": Case("world", ("data/**/*", "smoke/world/*.jsonl")),
        "data": Case("data", world, without=("data",)),
        "data, again": Case("data", ("smoke/data/*.*",)),
        "mcts": Case("mcts", ("smoke/data/seed.jsonl", "@smoke/data/seed.jsonl"), without=("mcts",)),
        "mcts, again": Case("mcts", ("smoke/mcts/*.*",)),
        "sft": Case("sft", ("smoke/mcts/sft.jsonl", "@smoke/mcts/sft.jsonl"), without=("sft",)),
        "sft, resumed": Case(
            "sft", ("smoke/sft/checkpoints/checkpoint-6/*", "smoke/sft/best/*", "smoke/sft/*.*"), "sft"
        ),
        "sft, chosen checkpoint": Case("chosen of sft", ("smoke/sft/checkpoints/**/*",), "sft"),
        "sft, again": Case("sft", ("smoke/sft/final/*", "smoke/sft/*.*")),
        "rl": Case("rl", ("smoke/data/rl.jsonl", "smoke/sft/final/*", "@smoke/data/rl.jsonl"), without=(RL,)),
        "rl, resumed": Case(
            "rl", (f"smoke/{RL}/checkpoints/checkpoint-4/*", f"smoke/{RL}/*.*"), without=(f"{RL}/done", f"{RL}/final")
        ),
        "rl, chosen checkpoint": Case("chosen of rl", (f"smoke/{RL}/checkpoints/**/*",)),
        "rl, again": Case("rl", (f"smoke/{RL}/final/*", f"smoke/{RL}/rollouts/*", f"smoke/{RL}/*.*")),
        "evaluation": Case(
            "evaluation",
            (f"smoke/{RL}/final/*", "data/bench/**/*", "data/cache/**/*", "data/scenes.jsonl"),
            without=("eval",),
        ),
        "evaluation of a checkpoint": Case(
            "checkpoint", (f"smoke/{RL}/checkpoints/checkpoint-2/*",), without=("eval",)
        ),
        "evaluation, again": Case("evaluation", (f"smoke/{EVAL}/*.*",)),
        "scores of other judges": Case("scores of other judges", (f"smoke/{EVAL}/*.*",)),
        "scores that come back": Case("evaluation", (f"smoke/{EVAL}/scored/**/*", f"smoke/{EVAL}/*.*"), "kept"),
        "scores with stored replies": Case("paid", (f"smoke/{EVAL}/judge_replies.sqlite",), "paid"),
        "rescoring": Case("rescoring", (f"smoke/{EVAL}/*.*",), without=(f"{EVAL}/rescored",)),
        "rescoring, again": Case("rescoring", (f"smoke/{EVAL}/rescored/**/*",)),
        "judges compared": Case(
            "compared", (f"smoke/{EVAL}/*.*", f"smoke/{EVAL}/rescored/**/*", f"smoke/{EVAL}/judge_validation.json")
        ),
        "judges of RL": Case(
            "of rl", (f"smoke/{RL}/rollouts/*", "smoke/data/rl.jsonl"), without=(f"{RL}/judge_validation.json",)
        ),
        "tables": Case("tables", ("smoke/**/judge_validation.json", f"smoke/{EVAL}/*.*"), without=("tables",)),
        "figures": Case("figures", (f"smoke/{EVAL}/*.*", f"smoke/{RL}/*.*"), without=("figures",)),
        "report": Case(
            "report",
            (
                f"smoke/{EVAL}/*.*",
                "smoke/**/judge_validation.json",
                "smoke/figures/*",
                f"smoke/{RL}/*.*",
                "data/bench/**/*",
                "data/scenes.jsonl",
            ),
            without=("report",),
        ),
        "hashes": Case("evaluation", ("smoke/.hashes.json", "smoke/eval/.hashes.json")),
        "manifests and configurations": Case("chain", everything),
    }


def readers() -> dict[str, Stage]:
    """The stages, and what else reads a run."""
    from eval import run as evaluation
    from eval.judge_validation import run as validation
    from fgrpo.training.stored import resume_point
    from rl.trainer import NEEDED
    from scripts.smoke_stages import config
    from sft import train as sft

    found = stages(ROOT, KEEP_ALL)
    first = list(found)[:6]

    def chain() -> None:
        for name in first:
            found[name].work()

    def compare(folder: str, *words: str) -> Callable[[], object]:
        def work() -> None:
            sys.argv = ["x", "--preset", "smoke", "--runs", str(ROOT), "--run", str(ROOT / "smoke" / folder), *words]
            sys.argv += ["--set", f"data.root={ROOT / 'data'}"]
            validation.main()

        return work

    def chosen(folder: str, needed: tuple[str, ...]) -> Callable[[], object]:
        return lambda: print(resume_point(ROOT / "smoke" / folder / "checkpoints", needed))

    def paid() -> None:
        evaluation.evaluate(config(ROOT, MODEL, KEEP_ALL, *PAID), MODEL, ("mmvp", "cvb_2d"), ROOT)

    return {
        **found,
        "chain": Stage("", chain),
        "chosen of sft": Stage("sft", chosen("sft", sft.NEEDED)),
        "chosen of rl": Stage(RL, chosen(RL, NEEDED)),
        "checkpoint": Stage(
            f"{EVAL}@2",
            lambda: evaluation.evaluate(config(ROOT, MODEL, KEEP_ALL), f"{MODEL}@2", ("mmvp", "cvb_2d"), ROOT),
        ),
        "compared": Stage(EVAL, compare(EVAL)),
        "of rl": Stage(RL, compare(RL, "--judge", "evaluation", "--limit", "20")),
        "paid": Stage(EVAL, paid),
    }


PAID: list[str] = []  # judges at the loopback server


def die_before_replacing(name: str) -> Callable[[], None]:
    """Make this process kill itself before it renames something to `name`."""

    def prepare() -> None:
        replace = os.replace

        def change(source: Any, target: Any, **more: Any) -> None:
            if Path(target).name == name:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target, **more)

        os.replace = os.rename = change  # type: ignore[assignment]

    return prepare


def build(every: dict[str, Stage]) -> None:
    """The finished run in WHOLE, and the states in which a reader finds its files otherwise."""
    for name in (
        "world",
        "data",
        "mcts",
        "sft",
        "rl",
        "evaluation",
        "rescoring",
        "judge validation",
        "compared",
        "figures",
    ):
        if in_child(every[name].work, LOG)[0]:
            sys.exit(f"{name} failed; see {LOG}")
    shutil.copytree(ROOT, WHOLE, symlinks=True)
    _state("sft", lambda: (_delete(["sft"]), in_child(every["sft"].work, LOG, die_before_replacing("final"))))
    _state("kept", lambda: in_child(every["scores of other judges"].work, LOG))

    def paid() -> None:
        _delete([f"{EVAL}/rescored"])
        in_child(every["paid"].work, LOG)
        _delete([f"{EVAL}/{name}" for name in ("done", "scores.jsonl", "verdicts.jsonl", "summary.json")])

    _state("paid", paid)


def _state(name: str, make: Callable[[], object]) -> None:
    restore("whole")
    make()
    shutil.copytree(ROOT, STATES / name, symlinks=True)


def restore(state: str) -> None:
    """Make ROOT a copy of a state."""
    shutil.rmtree(ROOT, ignore_errors=True)
    shutil.copytree(WHOLE if state == "whole" else STATES / state, ROOT, symlinks=True)


def _delete(names: list[str]) -> None:
    for name in names:
        path = ROOT / "smoke" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def flip(path: Path, rng: random.Random) -> int:
    """Flip one bit of one byte; returns its place."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(7)
    path.write_bytes(bytes(data))
    return place


def read(stage: Stage) -> tuple[int, dict[str, object], str]:
    """(exit status, the reader's folder, what it printed)."""
    LOG.write_bytes(b"")
    code, _ = in_child(_explained(stage.work), LOG)
    return code, content(ROOT / "smoke" / stage.folder), LOG.read_text(encoding="utf-8", errors="replace")


def _explained(work: Callable[[], object]) -> Callable[[], object]:
    """`work` that ends as the command line does after a `UserError`."""
    from fgrpo.errors import UserError

    def explained() -> None:
        try:
            work()
        except UserError as error:
            sys.exit(f"error: {error}")

    return explained


def outcome(file: Path, damaged: tuple[int, dict[str, object], str], expected: dict[str, object], skip: str) -> str:
    """What became of the damage."""
    code, found, said = damaged
    place = file.relative_to(ROOT)
    names = [str(place), file.name] if file.name not in ("config.json", "manifest.json") else [str(place)]
    names += [f"{file.parent.parent.name}/{file.parent.name}"] if "checkpoints" in file.parts else []
    names += [file.parent.name] if file.parent.name in ("best", "final") else []
    is_named = any(name in said for name in names)
    if code == 3 and "error: " in said:
        return "named" if is_named else "UNNAMED"
    if code:
        return "TRACEBACK"
    skipped = (skip, "made_from.json", "spend.jsonl")  # a stamp of what was read, damage included, and what was paid
    same = {k: v for k, v in found.items() if k not in skipped} == {
        k: v for k, v in expected.items() if k not in skipped
    }
    if not same:
        return "SILENT"
    return "repaired" if is_named else "harmless"


def files_of(case: Case, rng: random.Random) -> list[Path]:
    """Files of a case, at most `MOST` of each pattern, drawn by chance."""
    chosen: dict[Path, None] = {}
    for pattern in case.files:
        places = _images(ROOT / pattern[1:]) if pattern.startswith("@") else ROOT.glob(pattern)
        found = sorted(p for p in places if p.is_file() and p.stat().st_size and p.name != "done")
        most = len(found) if pattern.endswith("checkpoints/**/*") else min(len(found), MOST)
        kept = sorted(rng.sample(found, most))
        chosen.update(dict.fromkeys(kept))
    return list(chosen)


def _images(rows: Path) -> set[Path]:
    """The images that the rows of a file name."""
    return {Path(image) for row in read_jsonl(rows) for image in row["images"]}


def walk(name: str, case: Case, stage: Stage, flips: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Faults and counts of one case."""
    rng = random.Random(f"{name} {seed}")

    def ready() -> None:
        restore(case.state)
        _delete(list(case.without))

    ready()
    files = files_of(case, rng)
    code, expected, said = read(stage)
    if code:
        return [f"{name}: the reader fails without damage: {said[-500:]}"], Counter({"TRACEBACK": 1})
    faults, counts = [], Counter[str]()
    for file in files:
        for _ in range(flips):
            ready()
            place = flip(file, rng)
            what = outcome(file, found := read(stage), expected, _own(file, stage))
            counts[what] += 1
            if what in FAULTS:
                differs = sorted(k for k in {*expected, *found[1]} if expected.get(k) != found[1].get(k))
                last = (found[2].strip().splitlines() or [""])[-1]
                faults.append(
                    f"{what}: {name}: {file.relative_to(ROOT)}, byte {place}: differs {differs[:4]}; {last[:300]}"
                )
    print(
        f"| {name} | {len(files)} | {sum(counts.values())} | "
        + " | ".join(str(counts[x]) for x in ("named", "repaired", "harmless", *FAULTS))
        + " |",
        flush=True,
    )
    for fault in faults:
        print(f"  {fault}", flush=True)
    return faults, counts


def _own(file: Path, stage: Stage) -> str:
    """The damaged file's name in the reader's folder, if it lies there: that it stays damaged is no result of the reader."""
    folder = ROOT / "smoke" / stage.folder
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else ""


def main() -> None:
    """Build the run, walk the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", help="names of cases, or their beginnings (default: all)")
    parser.add_argument("--flips", type=int, default=1, help="flips per file (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="use the run that an earlier call built")
    args = parser.parse_args()
    with running() as server:
        for role in ("evaluation", "extraction"):
            PAID.extend(
                f"judges.{role}.{key}"
                for key in ("backend=openai", f"model={SERVED}", f'endpoints=["{server.url("right")}"]')
            )
        every = readers()
        if not args.keep:
            shutil.rmtree(TOP, ignore_errors=True)
            TOP.mkdir(parents=True)
            build(every)
        print(
            "| read by | files | flips | named | repaired | harmless | silent | unnamed | traceback |\n|---|"
            + "---:|" * 8
        )
        faults: list[str] = []
        total: Counter[str] = Counter()
        for name, case in cases().items():
            if args.cases is None or any(name.startswith(chosen) for chosen in args.cases):
                found, counts = walk(name, case, every[case.reader], args.flips, args.seed)
                faults += found
                total += counts
    print(f"{sum(total.values())} flips: {dict(total)}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
