"""The stages of the smoke preset in forked processes, and what their folders hold: for the scripts that kill and damage them.

A script gives each work folder its own `Place`. Paths are in rows of data, so a copy of the runs is only usable at their first place.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fgrpo.config import load

# as `make` sets them: one thread that does not spin; read when torch is imported
for _name, _value in {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}.items():
    os.environ.setdefault(_name, _value)
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline")

TIMED = ("manifest.json", "done", ".hashes.json", "training_args.bin", "checksums.json", "files.jsonl", "changes.json")
SECONDS = ("seconds", "runtime", "per_second", "step_time")
MODEL, BENCHMARKS = "fgrpo", ("mmvp", "cvb_2d")
OTHER_JUDGE = ("judges.evaluation.rubric=system",)  # the same oracle, whose scores belong to another judge


@dataclass(frozen=True)
class Stage:
    """A stage's folder below the preset's, and what runs it."""

    folder: str
    work: Callable[[], object]


def config(root: Path, method: str = MODEL, *more: str) -> Any:
    """The smoke preset with its data below `root`."""
    return load("smoke", method, [f"data.root={root / 'data'}", "eval.limit=4", *more])


def stages(root: Path, *more: str) -> dict[str, Stage]:
    """The stages by name, in their order; imports torch.

    Args:
        root: of the run folders.
        more: overrides of the configuration.
    """
    from data_curation import run as data
    from eval import figures, report, rescore, tables
    from eval import run as evaluation
    from eval.judge_validation import run as validation
    from mcts import run as mcts
    from miniworld.write import __main__ as world
    from rl import train as rl
    from sft import train as sft

    evaluated = root / "smoke" / "eval" / MODEL

    def of(*others: str) -> Any:
        return config(root, MODEL, *more, *others)

    def command(main: Callable[[], None], *words: str) -> Callable[[], object]:
        def work() -> None:
            sys.argv = [
                "stage",
                "--preset",
                "smoke",
                "--runs",
                str(root),
                *words,
                "--set",
                f"data.root={root / 'data'}",
            ]
            main()

        return work

    return {
        "world": Stage("world", lambda: world.write_world(of(), root)),
        "data": Stage("data", lambda: data.curate(of(), root)),
        "mcts": Stage("mcts", lambda: mcts.distil(of(), root)),
        "sft": Stage("sft", lambda: sft.train(of(), root)),
        "rl": Stage(f"rl-{MODEL}", lambda: rl.train(of(), root)),
        "evaluation": Stage(f"eval/{MODEL}", lambda: evaluation.evaluate(of(), MODEL, BENCHMARKS, root)),
        "scores of other judges": Stage(
            f"eval/{MODEL}", lambda: evaluation.evaluate(of(*OTHER_JUDGE), MODEL, BENCHMARKS, root)
        ),
        "rescoring": Stage(f"eval/{MODEL}", lambda: rescore.rescore(of(), evaluated, "training")),
        "judge validation": Stage(
            "judge_validation", command(validation.main, "--world", "4", "--judge", "evaluation")
        ),
        "tables": Stage("tables", command(tables.main)),
        "figures": Stage("figures", command(figures.main)),
        "report": Stage("report", command(report.main)),
    }


def in_child(work: Callable[[], object], log: Path, prepare: Callable[[], Any] | None = None) -> tuple[int, Any]:
    """Do `work` in a forked process; returns (exit status, what `prepare` returned and `work` left in it).

    Args:
        log: gets what the process prints, and its traceback.
        prepare: called in the process first; returns plain JSON that may change until the end.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        out = log.open("ab")
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        told, code = prepare() if prepare is not None else None, 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = 0 if end.code in (None, 0) else 3
            print(end)
        finally:  # no exit handlers of the parent
            if code == 1:
                traceback.print_exc()
            os.write(writing, json.dumps(told).encode())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def content(folder: Path) -> dict[str, object]:
    """{file: its content without times} of a stage's folder."""
    out: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in TIMED):
        name = str(path.relative_to(folder))
        try:
            out[name] = _plain(path)
        except (ValueError, OSError):  # damaged
            out[name] = path.read_bytes()
    return out


def _plain(path: Path) -> object:
    if path.suffix == ".parquet":
        return pq.read_table(path, page_checksum_verification=True).to_pylist()
    if path.name in ("metrics.jsonl", "trainer_state.json", "best.json"):
        return [_untimed(json.loads(line)) for line in _documents(path)]
    return path.read_bytes()


def _documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(word in k for word in SECONDS)}
    return [_untimed(item) for item in value] if isinstance(value, list) else value
