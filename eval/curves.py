"""What the figures draw, read from run files: the steps of each training run, evaluations by RL step, thresholds.

Training runs are rl-<method>/metrics.jsonl; thresholds are those that a run was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.colours import METHOD_COLOURS
from eval.results import Result, checkpoints, find
from fgrpo.errors import UserError
from fgrpo.files import read_items
from fgrpo.identity import Identity
from fgrpo.runs import folder, verify
from fgrpo.schema import Config
from fgrpo.training import metrics_file

START = "sft"  # the model from which an RL run starts if its configuration names none


def training(config: Config, root: str | Path = "runs") -> dict[str, list[dict[str, Any]]]:
    """The steps of metrics.jsonl by method, in the order of `METHOD_COLOURS`, then by name.

    A step that was written twice (after a resume) counts once.

    Raises:
        UserError: the file of a finished run was changed since.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    files = {p.parent.name.removeprefix("rl-"): p for p in folder(config, "", root).glob("rl-*/metrics.jsonl")}
    for method in [*(m for m in METHOD_COLOURS if m in files), *sorted(set(files) - set(METHOD_COLOURS))]:
        verify(files[method], f"rl-{method}")
        rows = read_items(files[method], metrics_file.checked, "line of metrics")
        by_step = {row["step"]: row for row in rows if "step" in row}
        if by_step:
            runs[method] = [by_step[step] for step in sorted(by_step)]
    return runs


def paths(
    config: Config,
    results: Mapping[str, Result],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    root: str | Path = "runs",
) -> dict[str, dict[int, Result]]:
    """The evaluations of each method by RL step: step 0 (the model that it starts from), its checkpoints, and the end of its run.

    Methods without an evaluated checkpoint are left out.
    """
    by_method = {}
    for method, steps in checkpoints(config, root).items():
        identity = Identity.read(folder(config, f"rl-{method}", root))
        ends = {0: results.get((identity.config if identity else {}).get("rl", {}).get("start", START))}
        if method in runs:
            ends[int(runs[method][-1]["step"])] = results.get(method)
        by_method[method] = dict(sorted({**steps, **{n: r for n, r in ends.items() if r is not None}}.items()))
    return by_method


def thresholds(config: Config, method: str, root: str | Path) -> Mapping[str, float]:
    """The thresholds a method was trained with, from its run folder; without a run folder those of the configuration."""
    run = folder(config, f"rl-{method}", root)
    if not (run / "config.json").is_file():
        return {name: constraint.tau for name, constraint in config.rl.constraints.items()}
    identity = Identity.read(run)
    if identity is None:
        raise UserError(f"{run / 'config.json'} is empty or damaged; restore it, or rerun `make rl-{method}`")
    trained_with = identity.config["rl"]["constraints"]
    return {name: float(constraint["tau"]) for name, constraint in trained_with.items()}


def evaluated(config: Config, root: str | Path) -> dict[str, Result]:
    """Finished evaluations; none if only training has finished."""
    return find(config, root) if any(folder(config, "eval", root).glob("*/done")) else {}


def has_multipliers(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(key.startswith("lambda/") for row in rows for key in row)
