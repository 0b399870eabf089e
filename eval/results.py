"""Reads finished evaluations: summaries by model, records, and the paper's reference figures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from eval import models
from eval.layout import percent
from eval.measures import Measure, measures
from fgrpo.boxes import PixelBounds
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown
from fgrpo.files import read_items
from fgrpo.runs import folder, verify
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed
from fgrpo.types import EvalRecord, Rollout

SCORING = "scoring.json"  # what an evaluation's scores depend on
CAPTION_FILE = "captions.json"  # in the folder of figures: the caption of each
PAPER_TABLES = CONFIGS / "paper_tables.yaml"
NO_JUDGE, NOT_SCORED = "none", "not scored"
AGAIN = "run `make eval` for this model again (stored answers are kept)"


@dataclass(frozen=True)
class Result:
    """One evaluated model: its folder and summary (`eval.summary`)."""

    name: str
    title: str
    path: Path
    summary: dict[str, Any]

    def kinds(self) -> list[str]:
        """ "greedy" and, if there are sampled answers, "sampled"."""
        return [kind for kind in ("greedy", "sampled") if kind in self.summary]

    def cell(self, kind: str, benchmark: str, metric: str) -> dict[str, Any] | None:
        """{"value", "low", "high", "n"} of a metric; benchmark "average" is the mean of all. None if there is none."""
        part = self.summary.get(kind, {})
        cells = part.get("average", {}) if benchmark == "average" else part.get("benchmarks", {}).get(benchmark, {})
        cell = cells.get(metric)
        return dict(cell) if cell is not None else None

    @property
    def limit(self) -> int | None:
        """The most questions of a benchmark that were evaluated; None: all of them."""
        limit = self.summary.get("limit")
        return None if limit is None else int(limit)

    @property
    def label(self) -> str:
        """The title, marked if the evaluation took a part of each benchmark alone."""
        return self.title if self.limit is None else f"{self.title} (limit {self.limit})"

    def benchmarks(self) -> list[str]:
        """The evaluated benchmarks."""
        return list(dict.fromkeys(name for kind in self.kinds() for name in self.summary[kind]["benchmarks"]))

    def averaged(self, kind: str) -> list[str]:
        """The benchmarks that its averages are over; those with a value of a metric count for that metric."""
        part = self.summary[kind]
        return list(part.get("averaged", part["benchmarks"]))

    def has_no_judge(self) -> bool:
        """Whether it was evaluated without a judge (`make eval JUDGES=none`)."""
        return self.summary.get("judge") == NO_JUDGE

    def shown(self, kind: str, benchmark: str, measure: Measure, interval: str = "none") -> str:
        """A metric as a cell of a table: percent, a dash without a value, "not scored" where it needs the judge that was left out."""
        cell = self.cell(kind, benchmark, measure.metric)
        if cell is None and self.has_no_judge() and measure.is_judged and benchmark in (*self.benchmarks(), "average"):
            return NOT_SCORED
        return percent(cell, interval=interval)

    def records(self) -> list[EvalRecord]:
        """Its scored rollouts. Raises UserError as `read_records`."""
        return read_records(self.path / "scores.jsonl")

    def rollouts(self) -> dict[str, Rollout]:
        """Its generations by id."""
        return {r.id: r for r in read_items(self.path / "generations.jsonl", Rollout.from_dict, "answer")}


def read_records(path: Path) -> list[EvalRecord]:
    """The records of a scores.jsonl.

    Raises:
        UserError: the file is missing, or holds scores that no measure has (an older version or a deleted reward wrote them).
    """
    known = {measure.score for measure in measures()}
    stamp = path.stat() if path.exists() else None
    records, names = _read(path, stamp and stamp.st_mtime_ns, stamp and stamp.st_size)
    unknown = sorted(names - known)
    if unknown:
        raise UserError(f"{path} holds the scores {', '.join(unknown)}, which no reward has; {AGAIN}")
    return list(records)


@lru_cache(maxsize=16)  # tables and report compare each evaluation with several others
def _read(path: Path, modified: int | None, size: int | None) -> tuple[tuple[EvalRecord, ...], frozenset[str]]:
    """The records of one state of a file, and the names of their scores."""
    records = tuple(read_items(path, EvalRecord.from_dict, "record of scores"))
    return records, frozenset(name for record in records for name in record.scores)


def scored_pixels(scoring: Path) -> PixelBounds:
    """The pixel bounds of the model's processor when the evaluation was scored; the model itself may be gone.

    Raises:
        UserError: the file (`SCORING`) is broken.
    """
    try:
        least, most, factor = read_sealed(scoring)["judges"]["pixels"]
        return PixelBounds(int(least), int(most), int(factor))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{scoring} is broken ({error!r}); {AGAIN}") from error


def find(config: Config, root: str | Path = "runs") -> dict[str, Result]:
    """Every finished evaluation of the preset: the models of `eval.models` in that order, then the others by name.

    Evaluated checkpoints ("fgrpo@100") are left out; see `checkpoints`.

    Raises:
        UserError: there is none (names the unfinished ones), or a summary is broken or of an older version.
    """
    top = folder(config, "eval", root)
    present = [name for name in _finished(top) if models.AT not in name]
    order = [name for name in config.eval.models if name in present]
    results = {name: _load(top / name) for name in [*order, *(n for n in present if n not in order)]}
    if not results:
        begun = unfinished(config, root)
        state = f"{', '.join(begun)} {'is' if len(begun) == 1 else 'are'} not finished; " if begun else ""
        raise UserError(f"no evaluated model below {top}; {state}run `make eval PRESET={config.preset}` first")
    return results


def unfinished(config: Config, root: str | Path = "runs") -> list[str]:
    """Evaluations that began and are not finished, also those whose answers await their scores."""
    top = folder(config, "eval", root)
    begun = {p.parent.name for p in top.glob("*/config.json") if not p.parent.name.startswith(".")}
    return sorted(begun - set(_finished(top)))


def one(name: str, config: Config, root: str | Path = "runs") -> Result:
    """The finished evaluation of one model or checkpoint. UserError: it is not evaluated (names those that are)."""
    top = folder(config, "eval", root)
    if name not in _finished(top):
        raise unknown("evaluated model", name, _finished(top))
    return _load(top / name)


def places(results: Iterable[Result], config: Config) -> list[str]:
    """The benchmarks to show: those of `eval.benchmarks`, then the others that were evaluated.

    Those of the configuration are left out where every result is of other benchmarks alone.
    """
    evaluated = list(dict.fromkeys(name for result in results for name in result.benchmarks()))
    configured = list(config.eval.benchmarks)
    others = [name for name in evaluated if name not in configured]
    return [*(configured if set(configured) & set(evaluated) or not others else ()), *others]


def judges_of(results: Iterable[Result]) -> str:
    """The judges of these evaluations in words; "" if none is recorded."""
    by_judge: dict[str, list[str]] = {}
    for result in results:
        if "judge" not in result.summary:
            continue
        judge, extractor = result.summary["judge"], result.summary.get("extractor")
        name = judge if extractor in (None, judge) else f"{judge} (answers: {extractor})"
        by_judge.setdefault(name, []).append(result.title)
    if len(by_judge) <= 1:
        return "".join(f"Judge: {name}." for name in by_judge)
    return "Judges: " + "; ".join(f"{name} of {', '.join(titles)}" for name, titles in by_judge.items()) + "."


def checkpoints(config: Config, root: str | Path = "runs") -> dict[str, dict[int, Result]]:
    """Finished evaluations of checkpoints: {model: {step: result}}, steps in order; UserError as `find`."""
    top = folder(config, "eval", root)
    by_model: dict[str, dict[int, Result]] = {}
    for name in _finished(top):
        model, at, step = name.partition(models.AT)
        if at and step.isdigit():
            by_model.setdefault(model, {})[int(step)] = _load(top / name)
    return {model: dict(sorted(steps.items())) for model, steps in by_model.items()}


def _finished(top: Path) -> list[str]:
    return sorted(p.parent.name for p in top.glob("*/done") if not p.parent.name.startswith("."))


def _load(path: Path) -> Result:
    verify(path, "eval")
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete {path / 'done'} and run `make eval`") from error
    known = {measure.metric for measure in measures()}
    unknown = sorted({m for kind in ("greedy", "sampled") for m in summary.get(kind, {}).get("average", {})} - known)
    if unknown:
        raise UserError(f"{file} holds the metrics {', '.join(unknown)}, which no reward reports; {AGAIN}")
    is_known = path.name.partition(models.AT)[0] in models.names()
    title = models.load(path.name).title if is_known else str(summary.get("title", path.name))
    return Result(path.name, title, path, summary)


@lru_cache(maxsize=1)
def paper() -> dict[str, Any]:
    """The paper's reference figures (configs/paper_tables.yaml)."""
    return dict(yaml.safe_load(PAPER_TABLES.read_text(encoding="utf-8")))
