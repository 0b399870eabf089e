"""What a lab declares before it runs: configs/lab/<name>.yaml, and the commit that holds it.

A declaration names hypotheses with direction and margin, the primary metric, seeds, conditions, methods, the grid of cells in
order of priority, the analysis and the stopping rule. When the first cell starts, the laboratory stores which commit declared it
(`seal`). A declaration that changes after that is refused, unless the change is recorded with a reason; the report lists it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from eval import models
from eval.measures import measures
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown
from fgrpo.installed import yaml_files
from fgrpo.runs import write_json
from fgrpo.schema_base import Count, Positive, Section, Share
from rewards.probes import MEASURED

FOLDER = CONFIGS / "lab"
NOTES = FOLDER / "notes"
OF_CELLS = "cells"  # the note on the cells
SEAL = "declared.json"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
CELL = "cell/"  # marks a metric that a cell has once, such as the share of steps at a multiplier's bound
# Beginnings of the columns of cells.parquet that a hypothesis may name
CELL_COLUMNS = ("lambda/", "saturated/", "forced/")
PROBES = (
    "probe/"  # marks what is measured on the policy: "probe/<reward>", a metric of the questions, greedy answers alone
)


class Backbone(Section):
    """A base model that the lab trains itself: the options of `python -m miniworld.train_backbone`."""

    seed: Count = 0
    direct_steps: Positive | None = None
    follow_steps: Count | None = None


class Condition(Section):
    """One setting in which methods are compared: overrides of the configuration, and a backbone (None: the preset's)."""

    about: str
    backbone: Name | None = None
    set: tuple[str, ...] = ()


class Method(Section):
    """One arm: a method of configs/method or an evaluated model (`of`; default: the arm's own name), with overrides."""

    of: str | None = None
    set: tuple[str, ...] = ()
    title: str | None = None


class Block(Section):
    """A part of the grid: every method in every condition with every seed. Earlier blocks run first."""

    conditions: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]


class Part(Section):
    """One comparison of a hypothesis: the effect is `a` minus `b`, or the value of `a` alone.

    `metric` is a metric of the evaluation, "probe/<reward>", or "cell/<column of cells.parquet>". "above" claims effect > margin, "below" claims
    effect < -margin; a negative margin tolerates. Shares are fractions: 0.01 is one point.
    """

    metric: str
    kind: Literal["sampled", "greedy"] = "sampled"
    a: str
    b: str | None = None
    direction: Literal["above", "below"]
    margin: float = 0.0


class Hypothesis(Section):
    """A claim, the conditions in which it is tested, and its parts. It is supported if all of them are."""

    claim: str
    conditions: Annotated[tuple[str, ...], Field(min_length=1)]
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


class Primary(Section):
    """The metric that the lab is about."""

    metric: str
    kind: Literal["sampled", "greedy"] = "sampled"


class Analysis(Section):
    """Bootstrap draws, confidence of the intervals, level of the tests after Holm's correction, seed of the draws."""

    samples: Positive = 2000
    confidence: Share = 0.95
    alpha: Share = 0.05
    seed: Count = 0


class Stopping(Section):
    """When the lab ends, in words; with fewer than `min_seeds` seeds in common a comparison stays undecided."""

    rule: str
    min_seeds: Annotated[int, Field(ge=2)] = 3


class Lab(Section):
    """A declared lab. `set` are overrides of every cell; `world_seed` makes the one world that all seeds share.

    `probe_questions`: forced false statements per family (`ops.lab.probe`). `probe_answers`: stored answers on which the policy is
    measured (`ops.policy_probes`), spread over the benchmarks. 0: none.
    """

    title: str
    question: str
    preset: str
    world_seed: Count = 0
    set: tuple[str, ...] = ()
    primary: Primary
    analysis: Analysis = Analysis()
    stopping: Stopping
    probe_questions: Count = 100
    probe_answers: Count = 0
    backbones: dict[Name, Backbone] = Field(default_factory=dict)
    conditions: Annotated[dict[Name, Condition], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    grid: Annotated[tuple[Block, ...], Field(min_length=1)]
    hypotheses: Annotated[dict[Name, Hypothesis], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_exist(self) -> Lab:
        for name, used, known in self._uses():
            if used not in known:
                raise ValueError(f"{name} names {used!r}, which the file does not declare ({', '.join(known)})")
        planned = {(c, m) for block in self.grid for c in block.conditions for m in block.methods}
        for name, hypothesis in self.hypotheses.items():
            for condition in hypothesis.conditions:
                arms = {arm for part in hypothesis.parts for arm in (part.a, part.b) if arm is not None}
                for arm in sorted(arms):
                    if (condition, arm) not in planned:
                        raise ValueError(f"{name} compares {arm} in {condition}, and the grid has no such cell")
        return self

    def _uses(self) -> Iterator[tuple[str, str, list[str]]]:
        metrics = [measure.metric for measure in measures()]
        yield "primary", self.primary.metric, metrics
        for name, condition in self.conditions.items():
            if condition.backbone is not None:
                yield f"condition {name}", condition.backbone, list(self.backbones)
        for block in self.grid:
            for used in block.conditions:
                yield "grid", used, list(self.conditions)
            for method in block.methods:
                yield "grid", method, list(self.methods)
        for name, hypothesis in self.hypotheses.items():
            for used in hypothesis.conditions:
                yield name, used, list(self.conditions)
            for part in hypothesis.parts:
                for arm in (part.a, part.b):
                    if arm is not None:
                        yield name, arm, list(self.methods)
                if part.metric.startswith(CELL):
                    yield name, part.metric.removeprefix(CELL).partition("/")[0] + "/", list(CELL_COLUMNS)
                elif part.metric.startswith(PROBES):
                    yield name, part.metric.removeprefix(PROBES), list(MEASURED)
                else:
                    yield name, part.metric, metrics

    def of(self, method: str) -> str:
        """The method of configs/method, or the evaluated model, behind an arm."""
        return self.methods[method].of or method

    def title_of(self, method: str) -> str:
        """The arm's title in tables and figures."""
        return self.methods[method].title or (models.load(method).title if self.of(method) == method else method)


def load(name: str, folder: Path = FOLDER) -> Lab:
    """The lab `name`, a file of configs/lab.

    Raises:
        UserError: there is no such file, or it is no declaration (names the key).
    """
    path = file_of(name, folder)
    try:
        return Lab.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}, {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error


def file_of(name: str, folder: Path = FOLDER) -> Path:
    """The file of the lab `name`. UserError: there is none (suggests the nearest)."""
    files = yaml_files(folder)
    if name not in files:
        raise unknown("lab", name, files)
    return files[name]


def notes(name: str, lab: Lab, folder: Path = NOTES) -> dict[str, str]:
    """{hypothesis: the paragraph on what its verdict means}, of configs/lab/notes/<name>.yaml; empty without that file.

    The key "cells" is a paragraph on the cells.

    Raises:
        UserError: the file is no mapping of declared hypotheses and "cells" to text.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        return {}
    data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
        raise UserError(f"{path} must be a mapping of hypotheses to text")
    for key in data:
        if key != OF_CELLS and key not in lab.hypotheses:
            raise unknown(f"hypothesis in {path}", str(key), lab.hypotheses)
    return dict(data)


def declared_by(path: Path) -> dict[str, Any]:
    """{"sha256", "text", "commit", "date", "committed"} of a declaration as it is now: the last commit that changed the file.

    `committed` is false where the file differs from that commit, or git does not know it. The text stays readable where a history is lost.
    """
    content = path.read_bytes()
    commit, _, date = _git(path, "log", "-1", "--format=%H %cI").partition(" ")
    clean = bool(commit) and not _git(path, "status", "--porcelain")
    return {"sha256": hashlib.sha256(content).hexdigest(), "text": content.decode(), "commit": commit or None,
            "date": date or None, "committed": clean}  # fmt: skip


def _git(path: Path, *words: str) -> str:
    command = ["git", "-C", str(path.parent), *words, "--", path.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def seal(folder: Path, path: Path, reason: str | None = None) -> dict[str, Any]:
    """Store, or compare with what is stored, which declaration the lab in `folder` runs; returns the seal.

    Args:
        path: the declaration.
        reason: why it was changed since the first cell started; the change is then recorded as a deviation.

    Raises:
        UserError: it was changed and no reason is given.
    """
    now, stored = declared_by(path), sealed(folder)
    if stored is None:
        stored = {**now, "started": _now(), "deviations": []}
    elif valid(stored) == now["sha256"]:
        return stored
    elif reason is None:
        raise UserError(
            f"{path} was changed after the first cell started ({stored['started']}): it is not what commit {_latest(stored).get('commit')} "
            "declares. Restore it, declare a new lab under another name, or record the change as a deviation, which the page "
            'prints: AMEND="the reason" (--amend)'
        )
    else:
        stored = {**stored, "deviations": [*stored["deviations"], {**now, "recorded": _now(), "reason": reason}]}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SEAL, stored)
    return stored


def valid(stored: dict[str, Any]) -> str:
    """The sha256 of the declaration that is in force: of the last deviation, else of the first cell's."""
    return str(_latest(stored)["sha256"])


def _latest(stored: dict[str, Any]) -> dict[str, Any]:
    latest: dict[str, Any] = stored["deviations"][-1] if stored["deviations"] else stored
    return latest


def sealed(folder: Path) -> dict[str, Any] | None:
    """What `seal` stored; None if no cell has started. UserError: the file is damaged."""
    path = folder / SEAL
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for one in (data, *data["deviations"]):
            if hashlib.sha256(one["text"].encode()).hexdigest() != one["sha256"]:
                raise ValueError(f"a text differs from its SHA-256 {one['sha256']}")
        return data
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore it from a copy") from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
