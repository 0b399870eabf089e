"""From the parquet files of a lab to effects, means and verdicts. Reads results alone, never a run folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.measures import measures
from fgrpo.errors import UserError
from ops.lab import statistics, verdicts
from ops.lab.declaration import CELL, Lab, Part
from ops.lab.results import CELLS, CURVES, QUESTIONS
from ops.lab.statistics import Arm, Effect

Key = tuple[str, str, str, str]  # condition, method, metric, kind


@dataclass
class Results:
    """A lab's declaration beside its results.

    Attributes:
        cells: the rows of cells.parquet, one per declared cell.
        answers: the rows of questions.parquet by cell, as columns.
        curves: {(cell, key): [(step, value), …]}.
    """

    lab: Lab
    cells: list[dict[str, Any]]
    answers: dict[str, dict[str, list[Any]]]
    curves: dict[tuple[str, str], list[tuple[int, float]]]

    @classmethod
    def read(cls, lab: Lab, top: Path) -> Results:
        """The results in `top`. UserError: there are none."""
        if not (top / CELLS).is_file():
            raise UserError(f"{top} holds no results; run `make lab` first")
        cells = pq.read_table(top / CELLS).to_pylist()
        table = pq.read_table(top / QUESTIONS)
        names = pc.unique(table["cell"]).to_pylist()
        answers = {name: table.filter(pc.equal(table["cell"], name)).to_pydict() for name in names}
        curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for point in pq.read_table(top / CURVES).to_pylist():
            curves.setdefault((point["cell"], point["key"]), []).append((point["step"], point["value"]))
        return cls(lab, cells, answers, curves)

    @cached_property
    def _pooled(self) -> dict[str, bool]:
        return {measure.metric: measure.report.pooled for measure in measures()}

    def done(self, condition: str, method: str) -> list[dict[str, Any]]:
        """The finished cells of an arm, one per seed."""
        return [c for c in self.cells if (c["condition"], c["method"], c["state"]) == (condition, method, "done")]

    def arm(self, condition: str, method: str, metric: str, kind: str) -> Arm:
        """An arm's values of a metric."""
        cells = self.done(condition, method)
        if metric.startswith(CELL):
            column = metric.removeprefix(CELL)
            return statistics.arm_of_cells({c["seed"]: c[column] for c in cells if c.get(column) is not None})
        rows = [row for c in cells for row in self._rows(c["seed"], self.answers[c["cell"]], metric, kind)]
        return statistics.arm_of_rows(rows, self._pooled[metric])

    @staticmethod
    def _rows(
        seed: int, columns: dict[str, list[Any]], metric: str, kind: str
    ) -> Iterable[tuple[int, str, str, float | None]]:
        values = columns.get(metric) or [None] * len(columns["kind"])
        for of, benchmark, group, value in zip(
            columns["kind"], columns["benchmark"], columns["group"], values, strict=True
        ):
            if of == kind:
                yield seed, benchmark, group, value

    def effect(self, condition: str, part: Part) -> Effect | None:
        """The effect of one part of a hypothesis."""
        return self.compare(condition, part.metric, part.kind, part.a, part.b)

    def compare(self, condition: str, metric: str, kind: str, a: str, b: str | None = None) -> Effect | None:
        """`a` minus `b`, paired by seed and question, or the mean of `a`."""
        first = self.arm(condition, a, metric, kind)
        second = None if b is None else self.arm(condition, b, metric, kind)
        settings = self.lab.analysis
        return statistics.effect(
            first, second, samples=settings.samples, confidence=settings.confidence, seed=settings.seed
        )

    def verdicts(self) -> list[verdicts.Verdict]:
        """The verdict on every hypothesis in each of its conditions."""
        return verdicts.decide(self.lab, self.effect)
