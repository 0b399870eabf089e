"""From the parquet files of a lab to effects, means and verdicts. Reads results alone, never a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.measures import measures
from fgrpo.errors import UserError
from miniworld.questions import CORE
from ops.lab import start_weights, statistics
from ops.lab.arms import Arm, arm_of_cells, arm_of_rows
from ops.lab.declaration import CELL, PROBES, Lab, Part
from ops.lab.first_published import as_first_published
from ops.lab.repetitions import REPEATS
from ops.lab.results import CELLS, CURVES, QUESTIONS
from ops.lab.statistics import Effect
from ops.lab.verdicts import Verdict, decide

Key = tuple[str, str, str, str, str | None, tuple[int, ...]]  # condition, metric, kind, a, b, seeds left out


@dataclass
class Results:
    """A lab's declaration beside its results.

    Attributes:
        cells: one row of cells.parquet per declared cell.
        answers: the rows of questions.parquet by cell, as columns.
        curves: {(cell, key): [(step, value), …]}.
        further: the rows of further runs (`ops.lab.repetitions`), whose answers and curves have the run's name.
    """

    lab: Lab
    cells: list[dict[str, Any]]
    answers: dict[str, dict[str, list[Any]]]
    curves: dict[tuple[str, str], list[tuple[int, float]]]
    further: list[dict[str, Any]] = field(default_factory=list)
    _arms: dict[tuple[str, ...], Arm] = field(default_factory=dict, init=False, repr=False)
    _known: dict[Key, Effect | None] = field(default_factory=dict, init=False, repr=False)

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
        declared = [cell for cell in cells if not cell.get(REPEATS)]
        return cls(lab, declared, answers, curves, [cell for cell in cells if cell.get(REPEATS)])

    @cached_property
    def _pooled(self) -> dict[str, bool]:
        return {measure.metric: measure.report.pooled for measure in measures()}

    def done(self, condition: str, method: str) -> list[dict[str, Any]]:
        """The finished cells of an arm, one per seed."""
        return [c for c in self.cells if (c["condition"], c["method"], c["state"]) == (condition, method, "done")]

    def runs(self, condition: str, method: str) -> list[dict[str, Any]]:
        """The finished runs of an arm: its cells, then their further runs in the order of their starts."""
        more = [c for c in self.further if (c["condition"], c["method"]) == (condition, method)]
        return self.done(condition, method) + sorted(more, key=lambda run: str(run.get("started")))

    def arm(self, condition: str, method: str, metric: str, kind: str) -> Arm:
        """An arm's values of a metric, over its cells' first runs."""
        return self._arm(self.done(condition, method), method, metric, kind)

    def _arm(self, cells: Sequence[Mapping[str, Any]], method: str, metric: str, kind: str) -> Arm:
        key = (method, metric, kind, *(cell["cell"] for cell in cells))
        if key not in self._arms:
            self._arms[key] = self._arm_of(cells, method, metric, kind)
        return self._arms[key]

    def _arm_of(self, cells: Sequence[Mapping[str, Any]], method: str, metric: str, kind: str) -> Arm:
        if metric.startswith(CELL):
            column = metric.removeprefix(CELL)
            values = {c["seed"]: c[column] for c in cells if c.get(column) is not None}
            units = {c["seed"]: unit for c in cells if (unit := self._unit(c, column))}
            return arm_of_cells(values, units, method)
        rows = [row for c in cells for row in self._rows(c["seed"], self.answers[c["cell"]], metric, kind)]
        return arm_of_rows(rows, metric.startswith(PROBES) or self._pooled[metric], method)

    def _unit(self, cell: Mapping[str, Any], column: str) -> int:
        """What a column of a cell is a share of: forced questions, or steps; 0 if it is no share."""
        shares = {"forced": self.lab.probe_questions * len(CORE), "saturated": cell.get("steps") or 0}
        return shares.get(column.partition("/")[0], 0)

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

    def compare(
        self, condition: str, metric: str, kind: str, a: str, b: str | None = None, without: tuple[int, ...] = ()
    ) -> Effect | None:
        """`a` minus `b`, paired by seed and question, or the mean of `a`. A pair starts from the same weights (`start_weights.pairs`).

        Args:
            without: seeds to leave out.
        """
        key = (condition, metric, kind, a, b, without)
        if key not in self._known:
            arms, apart, further = self._of_pair(condition, metric, kind, a, b)
            arms = [arm.only([seed for seed in arm.seeds if seed not in without]) for arm in arms]
            settings = self.lab.analysis
            found = statistics.effect(
                *arms, samples=settings.samples, confidence=settings.confidence, seed=settings.seed
            )
            said = tuple(f"seed {seed}: {_apart(a, b)}, so it is left out" for seed in apart)
            gaps = () if found is None else (*found.gaps, *said)
            self._known[key] = None if found is None else replace(found, gaps=gaps, further=further)
        return self._known[key]

    def _of_pair(
        self, condition: str, metric: str, kind: str, a: str, b: str | None
    ) -> tuple[list[Arm], tuple[int, ...], tuple[str, ...]]:
        """The arms of a comparison, the seeds at which they have no pair, and the further runs among their pairs."""
        if b is None:
            return [self.arm(condition, a, metric, kind)], (), ()
        of_a, of_b, apart = start_weights.pairs(self.runs(condition, a), self.runs(condition, b))
        further = tuple(run["cell"] for run in (*of_a, *of_b) if run.get(REPEATS))
        return [self._arm(of_a, a, metric, kind), self._arm(of_b, b, metric, kind)], apart, further

    def unpaired(self, condition: str, part: Part) -> str:
        """Why no seed of a comparison has a pair of runs, in words; "" if one has, or if an arm has no run."""
        if part.b is None:
            return ""
        of_a, _, apart = start_weights.pairs(self.runs(condition, part.a), self.runs(condition, part.b))
        return _apart(part.a, part.b) if apart and not of_a else ""

    def verdicts(self) -> list[Verdict]:
        """The verdict on every hypothesis in each of its conditions."""
        return decide(self.lab, self.effect, self.unpaired)

    def first_published(self) -> list[Verdict]:
        """The verdicts with the errors as first published, in the same order."""

        def effect(condition: str, part: Part) -> Effect | None:
            return as_first_published(self.effect(condition, part))

        return decide(self.lab, effect, self.unpaired)


def _apart(a: str, b: str | None) -> str:
    return f"no runs of {a} and {b} are known to start from the same SFT weights"
