"""Reads what evaluations left: summaries by model, records, and the paper's reference figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from eval import models
from fgrpo import jsonl
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError
from fgrpo.runs import folder
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Rollout

PAPER_TABLES = CONFIGS / "paper_tables.yaml"


@dataclass(frozen=True)
class Result:
    """One evaluated model: its folder and summary (`eval.summary`)."""

    name: str
    title: str
    path: Path
    summary: dict[str, Any]

    def kinds(self) -> list[str]:
        """ "greedy" and, where sampled answers were made, "sampled"."""
        return [kind for kind in ("greedy", "sampled") if kind in self.summary]

    def cell(self, kind: str, benchmark: str, metric: str) -> dict[str, Any] | None:
        """{"value", "low", "high", "n"} of a metric; benchmark "average" is the mean of all. None if there is none."""
        part = self.summary.get(kind, {})
        cells = part.get("average", {}) if benchmark == "average" else part.get("benchmarks", {}).get(benchmark, {})
        found = cells.get(metric)
        return dict(found) if found is not None else None

    def records(self) -> list[EvalRecord]:
        """Its scored rollouts."""
        return [EvalRecord.from_dict(item) for item in jsonl.read(self.path / "scores.jsonl")]

    def rollouts(self) -> dict[str, Rollout]:
        """Its generations by id."""
        return {item["id"]: Rollout.from_dict(item) for item in jsonl.read(self.path / "generations.jsonl")}


def find(config: Config, root: str | Path = "runs") -> dict[str, Result]:
    """Every finished evaluation of the preset, those of `eval.models` first, in that order.

    Raises:
        UserError: there is none, or a summary is no JSON.
    """
    top = folder(config, "eval", root)
    found = {}
    present = sorted(p.parent.name for p in top.glob("*/done") if not p.parent.name.startswith("."))
    order = [name for name in config.eval.models if name in present]
    for name in [*order, *(n for n in present if n not in order)]:
        path = top / name / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); delete {path.parent / 'done'} and run `make eval`"
            ) from error
        title = models.load(name).title if name in models.names() else str(summary.get("title", name))
        found[name] = Result(name, title, path.parent, summary)
    if not found:
        raise UserError(f"no evaluated model below {top}; run `make eval PRESET={config.preset}` first")
    return found


@lru_cache(maxsize=1)
def paper() -> dict[str, Any]:
    """The paper's reference figures (configs/paper_tables.yaml)."""
    return dict(yaml.safe_load(PAPER_TABLES.read_text(encoding="utf-8")))
