"""Two evaluated models whose figures are all known and all different, and readers of tables.

Each count is of 20 answers on the first benchmark, and one more on each further one, so the mean of the seven benchmarks is that
of the fourth. A crossed wire therefore shows in whatever reads these figures.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripted import Scripted

from eval import miniworld_truth, run, summary
from fgrpo.config import load
from fgrpo.files import write_jsonl
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Score

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = ROOT / "miniworld" / "backbone"
SEVEN = ("cvb_2d", "cvb_3d", "mindcube", "mmvp", "omnispatial", "realworldqa", "sat_real")
TITLES = {"grpo-t": "GRPO-T", "fgrpo": "FGRPO"}
KINDS = ("greedy", "sampled")
QUESTIONS = 20
# How many of QUESTIONS answers on the first benchmark have the score; "wrong" counts inconsistent ones.
COUNTS = {
    ("grpo-t", "greedy"): {"accuracy": 3, "wrong": 9, "semantic_grounding": 4, "spatial_grounding": 0, "flip": 2, "statement": 12, "format": 13},
    ("grpo-t", "sampled"): {"accuracy": 5, "wrong": 11, "semantic_grounding": 6, "spatial_grounding": 1, "flip": 3, "statement": 10, "format": 12},
    ("fgrpo", "greedy"): {"accuracy": 8, "wrong": 1, "semantic_grounding": 11, "spatial_grounding": 5, "flip": 0, "statement": 13, "format": 12},
    ("fgrpo", "sampled"): {"accuracy": 10, "wrong": 2, "semantic_grounding": 9, "spatial_grounding": 7, "flip": 1, "statement": 12, "format": 11},
}  # fmt: skip
LOST = {"grpo-t": (1, 2), "fgrpo": (3, 0)}  # of each benchmark's greedy answers: truncated, unresolved
METRICS = (
    "accuracy",
    "inconsistency",
    "semantic_grounding",
    "spatial_grounding",
    "flip",
    "statement",
)  # in order of columns
TITLE_OF = {m: m.replace("_", " ") for m in METRICS}  # in tables, on cards and axes
HIGHER_IS_BETTER = {"accuracy", "semantic_grounding", "spatial_grounding", "statement"}


SCORES = {"accuracy": "accuracy", "inconsistency": "consistency", "semantic_grounding": "semantic_grounding",
          "spatial_grounding": "spatial_grounding", "flip": "flip", "statement": "statement", "format": "format"}  # metric -> score of a record  # fmt: skip


def setting(*overrides: str) -> Config:
    return load("mini", "fgrpo", ["eval.bootstrap_samples=40", *overrides])


def small_world(data_root: Path) -> Config:
    """The smoke configuration over a data root of the miniature world."""
    sizes = ("world.train_per_source=1", "world.bench_per_benchmark=4", "eval.bootstrap_samples=50")
    return load("smoke", "fgrpo", [f"data.root={data_root}", *sizes])


def record(
    model: str, benchmark: str, n: int, kind: str, values: Mapping[str, float | None], **meta: Any
) -> EvalRecord:
    """One scored answer; `values` by metric, inconsistency as it is reported."""
    stored = {SCORES[m]: v if v is None or m != "inconsistency" else 1.0 - v for m, v in values.items()}
    scores = {name: Score.not_applicable("not judged") if v is None else Score.of(v) for name, v in stored.items()}
    rollout = f"{benchmark}/test/{n}" + ("" if kind == "greedy" else "#1")
    facts = {"kind": kind, "group": f"{benchmark}/test/{n}", "finish": "stop", "answer": "a", "answer_from": "rules"}
    return EvalRecord(rollout, benchmark, model, f"{benchmark}/test/{n}", scores, {**facts, "judge": "oracle", **meta})


def records_of(model: str) -> list[EvalRecord]:
    out = []
    for kind, (b, benchmark), n in itertools.product(KINDS, enumerate(SEVEN), range(QUESTIONS)):
        count = COUNTS[model, kind]
        values = {m: float(n < count[m] + b) for m in ("accuracy", "flip", "statement", "format")}
        values |= {"inconsistency": float(n < count["wrong"] + b)}
        values |= {m: (count[m] + b) / QUESTIONS for m in ("semantic_grounding", "spatial_grounding")}
        truncated, unresolved = LOST[model] if kind == "greedy" else (0, 0)
        meta = {"finish": "length" if n < truncated else "stop"}
        meta |= {"answer_from": "unresolved" if n >= QUESTIONS - unresolved else "rules"}
        out.append(record(model, benchmark, n, kind, values, **meta))
    return out


def expected(model: str, kind: str, metric: str, place: str) -> float:
    """Percent, by hand: 5 points per answer."""
    count = COUNTS[model, kind]["wrong" if metric == "inconsistency" else metric]
    return 5.0 * (count + (3 if place == "average" else SEVEN.index(place)))


def store(config: Config, root: Path, model: str, records: Sequence[EvalRecord]) -> None:
    """A finished evaluation."""
    folder = root / config.preset / "eval" / model
    folder.mkdir(parents=True)
    write_jsonl(folder / "scores.jsonl", (r.to_dict() for r in records))
    content = {
        "model": model,
        "title": TITLES.get(model, model),
        "mode": "think",
        **summary.summarise(records, ["mmvp"], config.eval),
    }
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))
    (folder / "done").touch()


def table_named(tables: Sequence[Any], name: str) -> Any:
    return next(t for t in tables if t.name == name)


def heading(metric: str) -> str:
    """The title of a metric with the arrow of its direction."""
    return f"{TITLE_OF[metric]} {'↑' if metric in HIGHER_IS_BETTER else '↓'}"


def rows_of(table: Any) -> dict[str, dict[str, str]]:
    """Cells by row and heading."""
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def number(cell: str) -> float:
    """The first number of a cell."""
    match = re.match(r"-?\d+(?:\.\d+)?", cell)
    assert match, cell
    return float(match.group())


def evaluate(world: Config, root: Path, name: str, stage: str, inconsistent: float, wrong: float, **more: Any) -> Path:
    """Evaluate a checkpoint that `stage` left, with a scripted engine; `max_pixels` is its processor's bound."""
    folder = root / world.preset / stage / "final"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({**json.loads((BACKBONE / "config.json").read_text()), "stage": stage})
    )
    processor = json.loads((BACKBONE / "processor_config.json").read_text())
    if "max_pixels" in more:
        limits = {"shortest_edge": 784, "longest_edge": more["max_pixels"]}
        for part in (processor, processor.get("image_processor", {})):
            part.update(
                {key: value for key, value in (("size", limits), ("max_pixels", more["max_pixels"])) if key in part}
            )
    (folder / "processor_config.json").write_text(json.dumps(processor))
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    engine = more.get("engine", Scripted)(book, inconsistent=inconsistent, wrong=wrong)
    return run.evaluate(world, name, more.get("benchmarks", ()), root, engine)
