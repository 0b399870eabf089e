"""From a declaration to jobs: the world, backbones, chains (data, search, SFT, anchoring) and cells (RL, evaluation, probes).

    runs/lab/<name>/worlds/<condition>/                  data of the miniature world, one for all seeds
    runs/lab/<name>/backbones/<name>/                    base models that the lab trains
    runs/lab/<name>/chains/<condition>/seed-<s>/runs/    data, mcts and sft; shared by all arms of a condition and seed
    runs/lab/<name>/anchors/<condition>/seed-<s>/runs/   anchor, for the arms that start from it
    runs/lab/<name>/cells/<condition>/<method>/seed-<s>/ runs/ (links to the chain, rl-*, eval/), cell.json, questions, curves

Conditions that differ in RL alone share their chains. A job is resumed by its own stages; `key` tells whether a finished one is
the one that is declared now.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from eval import models
from fgrpo import config as configuration
from fgrpo.errors import UserError, unknown
from fgrpo.installed import importable
from fgrpo.schema import Config
from fgrpo.shards import Shard
from ops.lab.declaration import Condition, Lab

CELLS = "cells"  # folder, and beginning of the jobs' names
LINKED = ("data", "sft")  # what RL and evaluation read of a chain
ANCHOR = "anchor"
PROBE = "probe.json"
POLICY_PROBES = "ops.policy_probes"
CHAIN = "chain"  # kind of the jobs that cells share
Words = tuple[str, ...]
# One process per core: SFT's second process for batches would be one more.
CHAIN_METHOD = "fgrpo"  # a method's name for stages before RL, which do not depend on it
BEFORE_RL = ("world", "data", "mcts", "sft")
SINGLE = ("launch.sft_image_workers=0", "launch.rl_image_workers=0")


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other in one folder.

    Attributes:
        name: unique in the lab, such as "cells/mini/fgrpo/seed-0".
        kind: jobs of one kind cost about the same; "cell" jobs are the results.
        weight: the expected cost relative to the others of its kind.
        needs: names of jobs that must be done before.
        links: {link: target} to make in the folder before the first command.
    """

    name: str
    kind: str
    folder: Path
    commands: tuple[Words, ...]
    needs: tuple[str, ...] = ()
    weight: float = 1.0
    links: tuple[tuple[Path, Path], ...] = ()
    inputs: str = ""  # keys of the jobs it needs

    @property
    def key(self) -> str:
        """Hash of what the job computes: its commands without the interpreter, and those of the jobs that it needs."""
        words = [list(command[1:]) for command in self.commands]
        return hashlib.sha256(json.dumps([words, self.inputs]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid."""

    condition: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """ "<condition>/<method>/seed-<s>", as `--cell` takes it."""
        return f"{self.condition}/{self.method}/seed-{self.seed}"


def cells(lab: Lab) -> list[Cell]:
    """The cells of the grid in order of priority, each once."""
    every = (
        Cell(condition, method, seed)
        for block in lab.grid
        for seed in block.seeds
        for condition in block.conditions
        for method in block.methods
    )
    return list(dict.fromkeys(every))


@dataclass(frozen=True)
class Plan:
    """Jobs in order of priority, every one after those that it needs, and the job of each cell."""

    jobs: tuple[Job, ...]
    of_cell: dict[Cell, Job] = field(default_factory=dict)

    def only(self, chosen: Sequence[Cell]) -> Plan:
        """The jobs of these cells and what they need."""
        by_name = {job.name: job for job in self.jobs}
        wanted: set[str] = set()
        waiting = [self.of_cell[cell].name for cell in chosen]
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += by_name[name].needs
        return Plan(tuple(j for j in self.jobs if j.name in wanted), {c: self.of_cell[c] for c in chosen})

    def shard(self, part: Shard) -> Plan:
        """The part's cells: cells of one chain stay together, so no two parts train the same SFT."""
        chains = list(dict.fromkeys(self.chain_of(cell) for cell in self.of_cell))
        mine = set(chains[part.index - 1 :: part.count])
        return self.only([cell for cell in self.of_cell if self.chain_of(cell) in mine])

    def chain_of(self, cell: Cell) -> str:
        """The chain whose SFT a cell starts from."""
        return next(name for name in self.of_cell[cell].needs if name.startswith("chains/"))


def cell_named(plan: Plan, name: str) -> Cell:
    """The cell `name`. UserError: there is none (suggests the nearest)."""
    by_name = {cell.name: cell for cell in plan.of_cell}
    if name not in by_name:
        raise unknown("cell", name, by_name)
    return by_name[name]


def plan(lab: Lab, top: Path) -> Plan:
    """All jobs of a lab whose results lie in `top`.

    Raises:
        UserError: a cell's configuration is not valid (unknown key, method or preset), an arm is no method and no model, or an
            arm's overrides change what comes before RL.
    """
    jobs: dict[str, Job] = {}
    of_cell: dict[Cell, Job] = {}
    worlds: dict[str, str] = {}
    chains: dict[str, str] = {}
    anchors: dict[str, str] = {}
    known = models.names()
    for cell in cells(lab):
        of, condition = lab.of(cell.method), lab.conditions[cell.condition]
        if of not in known:
            raise unknown("method or model of an arm", of, known)
        backbone = _backbone(lab, condition, top, jobs)
        base = () if backbone is None else (f"models.base={backbone}", f"models.teacher={backbone}")
        below: Words = (*SINGLE, *lab.set, *condition.set, *base)
        config = _load(lab.preset, CHAIN_METHOD, below)
        world = worlds.setdefault(_digest(config, ("world",)), cell.condition)
        chain = chains.setdefault(f"{world} {_digest(config, BEFORE_RL)}", cell.condition)
        method = of if models.rl_run(of) else CHAIN_METHOD
        arm: Words = (*below, *lab.methods[cell.method].set)
        whole = _load(lab.preset, method, arm)
        if _digest(whole, (*BEFORE_RL, ANCHOR)) != _digest(config, (*BEFORE_RL, ANCHOR)):
            raise UserError(f"the arm {cell.method} changes what comes before RL; declare a condition for that")
        data = f"data.root={top / 'worlds' / world / 'data'}"
        made = _Maker(lab.preset, top, jobs)
        needs = [made.world(world, (*below, f"seed={lab.world_seed}", data))]
        needs += [f"backbones/{condition.backbone}"] if backbone is not None else []
        of_seed: Words = (f"seed={cell.seed}", data)
        starts = [made.chain(f"chains/{chain}/seed-{cell.seed}", (*below, *of_seed), needs)]
        if ANCHOR in (of, models.load(of).made_by) or (models.rl_run(of) and whole.rl.start == ANCHOR):
            place = anchors.setdefault(f"{chain} {_digest(config, (ANCHOR,))}", cell.condition)
            starts.append(made.anchor(f"anchors/{place}/seed-{cell.seed}", (*below, *of_seed), starts[0]))
        of_cell[cell] = made.cell(cell, of, method, (*arm, *of_seed), starts, whole, lab)
    return Plan(tuple(jobs.values()), of_cell)


def thresholds(lab: Lab, condition: str, method: str) -> dict[str, float]:
    """{constraint: τ} that an arm is declared to train with in a condition."""
    of = lab.of(method)
    if models.rl_run(of) is None:
        return {}
    words: Words = (*SINGLE, *lab.set, *lab.conditions[condition].set, *lab.methods[method].set)
    return {name: constraint.tau for name, constraint in _load(lab.preset, of, words).rl.constraints.items()}


@cache
def _load(preset: str, method: str, words: Words) -> Config:
    return configuration.load(preset, method, words)


def _digest(config: Config, stages: Sequence[str]) -> str:
    slices = [configuration.stage_slice(config, stage) for stage in stages]
    return hashlib.sha256(json.dumps(slices, sort_keys=True).encode()).hexdigest()


def _backbone(lab: Lab, condition: Condition, top: Path, jobs: dict[str, Job]) -> Path | None:
    """The folder of a condition's own backbone, whose job is added; None for the preset's."""
    if condition.backbone is None:
        return None
    name, options = f"backbones/{condition.backbone}", lab.backbones[condition.backbone]
    out = top / name / "model"
    given = [
        ("--seed", options.seed),
        ("--direct-steps", options.direct_steps),
        ("--follow-steps", options.follow_steps),
    ]
    words = [word for flag, value in given if value is not None for word in (flag, str(value))]
    command = (sys.executable, "-m", importable("miniworld.train_backbone"), "--out", str(out), *words)
    jobs.setdefault(name, Job(name, "backbone", top / name, (command,)))
    return out


@dataclass(frozen=True)
class _Maker:
    """Adds jobs; one that exists already stays. `words` are overrides, of which later ones win."""

    preset: str
    top: Path
    jobs: dict[str, Job]

    def _command(self, modules: Words, runs: Path, words: Words, method: str = CHAIN_METHOD, more: Words = ()) -> Words:
        first, *rest = modules
        chosen = ("--preset", self.preset, "--method", method, "--runs", str(runs), *more)
        return (sys.executable, "-m", importable(first), *rest, *chosen, "--set", *words)

    def world(self, condition: str, words: Words) -> str:
        """The world that all seeds share. Its seed is the lab's, not the cell's."""
        name = f"worlds/{condition}"
        command = self._command(("miniworld.write",), self.top / name / "runs", words)
        self.jobs.setdefault(name, Job(name, "world", self.top / name, (command,)))
        return name

    def chain(self, name: str, words: Words, needs: Sequence[str]) -> Job:
        """Curation, tree search and SFT of one seed."""
        folder = self.top / name
        stages: tuple[Words, ...] = (("data_curation.run",), ("mcts.run",), ("fgrpo.training.launch", "sft.train"))
        commands = tuple(self._command(modules, folder / "runs", words) for modules in stages)
        inputs = "/".join(self.jobs[need].key for need in needs)
        return self.jobs.setdefault(name, Job(name, CHAIN, folder, commands, tuple(needs), inputs=inputs))

    def anchor(self, name: str, words: Words, chain: Job) -> Job:
        """The anchored model of one chain's SFT."""
        folder = self.top / name
        command = self._command(("fgrpo.training.launch", "sft.anchor"), folder / "runs", words)
        here, there = folder / "runs" / self.preset, chain.folder / "runs" / self.preset
        links = tuple((here / stage, there / stage) for stage in ("data", "mcts", "sft"))
        needs = (chain.name, *chain.needs)
        job = Job(name, ANCHOR, folder, (command,), needs, links=links, inputs=chain.key)
        return self.jobs.setdefault(name, job)

    def cell(
        self, cell: Cell, of: str, method: str, words: Words, starts: Sequence[Job], config: Config, lab: Lab
    ) -> Job:
        """RL (for a method), evaluation, and for a model that reasons forced false statements and probes.

        Args:
            starts: the chain, then the anchored model if the arm needs it.
        """
        name = f"{CELLS}/{cell.name}"
        folder, runs, commands = self.top / name, self.top / name / "runs", list[Words]()
        is_trained = models.rl_run(of) is not None
        if is_trained:
            commands.append(self._command(("fgrpo.training.launch", "rl.train"), runs, words, method))
        commands.append(self._command(("eval.run",), runs, words, method, ("--model", of)))
        spec = models.load(of)
        if lab.probe_questions and spec.mode == "think":
            model = models.location(models.configured(of, config), config, runs)
            options = ("--model", model, "--out", str(folder / PROBE), "--questions", str(lab.probe_questions))
            commands.append((sys.executable, "-m", importable("ops.lab.probe"), *options))
        if lab.probe_answers and spec.mode == "think":
            given = ("--model", of, "--limit", str(lab.probe_answers))
            commands.append(self._command((POLICY_PROBES,), runs, words, method, given))
        here, chain = runs / self.preset, starts[0]
        links = tuple((here / stage, chain.folder / "runs" / self.preset / stage) for stage in LINKED)
        links += tuple((here / ANCHOR, start.folder / "runs" / self.preset / ANCHOR) for start in starts[1:])
        kind = "cell, trained" if is_trained else "cell, evaluated"
        rl = config.rl
        weight = float(rl.max_steps * rl.rollout_batch * rl.group_size) if is_trained else 1.0
        needs = (*(start.name for start in starts), *chain.needs)
        inputs = "/".join(start.key for start in starts)
        job = Job(name, kind, folder, tuple(commands), needs, weight, links, inputs)
        return self.jobs.setdefault(name, job)
