"""Slurm scripts of a preset: one per kind of job, and one that submits them in order (`make slurm PRESET=paper-7b`).

Writes runs/<preset>/slurm/*.sbatch and submit.sh from ops/slurm_templates. Difficulty rollouts, tree search and evaluation
are arrays of jobs, each with its own server (`fgrpo.inference.serve`) and a shard of the items (`fgrpo.shards`); a merge
follows. Training is one job of `launch.machines` machines with a launcher on each (`fgrpo.training.launch`). RL gets its
judge and rollout servers on the same machine if they fit next to the trainers, otherwise on one more machine. Machines,
limits and set-up are in `cluster` of configs/paper.yaml; docs/cluster.md explains them.

Command: `python -m ops.slurm --preset paper-7b [--overlay one-node] [--methods grpo-t,fgrpo]`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from eval import models
from fgrpo import cli, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference import addresses
from fgrpo.installed import importable
from fgrpo.schema import Config, Judge, Serving

TEMPLATES = Path(__file__).resolve().parent / "slurm_templates"
METHODS = ("grpo-t", "fgrpo")
# stages whose shards are arrays of jobs: stage, module, role of each job's server
PARTS: tuple[tuple[Literal["data", "mcts"], str, str], ...] = (
    ("data", "data_curation.run", "base"),
    ("mcts", "mcts.run", "teacher"),
)


def gpus_of(serving: Serving) -> int:
    """GPUs of a server of this kind."""
    return serving.tensor_parallel * serving.data_parallel


def is_served(judge: Judge) -> bool:
    """Whether this judge runs on our own server (not the oracle, not an external API)."""
    return judge.backend == "openai" and any(addresses.is_pattern(entry) for entry in judge.endpoints)


def rl_layout(config: Config) -> dict[str, int]:
    """Machines of the RL job, and the GPUs of judge and rollouts; 0 GPUs mean nothing to serve.

    Raises:
        UserError: judge and rollouts do not fit on one machine.
    """
    machine, train = config.cluster.gpus, config.launch.rl_processes
    judge = gpus_of(config.serve.judge) if is_served(config.judges.training) else 0
    one = config.serve.rollouts.tensor_parallel if config.rl.rollout_engine == "vllm-server" else 0
    beside = config.launch.machines == 1 and train + judge + one <= machine
    nodes = config.launch.machines + (0 if beside or not judge + one else 1)
    first = train if beside else 0
    if first + judge + one > machine:
        raise UserError(
            f"the judge ({judge} GPUs) and the rollouts ({one}) do not fit on a machine of {machine} GPUs; lower "
            "serve.judge.tensor_parallel or serve.rollouts.tensor_parallel, or set cluster.gpus"
        )
    if train > machine:
        raise UserError(f"launch.rl_processes is {train} and a machine has {machine} GPUs (cluster.gpus)")
    copies = (machine - first - judge) // one if one else 0
    return {
        "machines": config.launch.machines,
        "nodes": nodes,
        "processes": train,
        "job_gpus": max(machine if nodes > config.launch.machines else 0, first + judge + one * copies, train),
        "judge_first": first,
        "judge_gpus": judge,
        "rollout_first": first + judge,
        "rollout_gpus": one * copies,
        "rollout_copies": copies,
    }


def checkpoints(config: Config, root: str | Path) -> dict[str, str]:
    """The checkpoint to serve per evaluated model; "" for a model with its own endpoint."""
    out = {}
    for name in config.eval.models:
        spec = models.load(name)
        path = models.render(spec.path, run=str(runs.folder(config, "", root)), base=config.models.base)
        out[name] = "" if spec.engine.endpoints else path
    return out


def scripts(
    config: Config, options: Sequence[str], root: str | Path = "runs", methods: Sequence[str] = METHODS
) -> dict[str, str]:
    """The text of every script by file name.

    Args:
        options: command-line words of this configuration (`--preset …`).
        methods: files of configs/method to train.

    Raises:
        UserError: a job needs more GPUs than a machine has.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    cluster = config.cluster
    common: dict[str, Any] = {
        "preset": config.preset,
        "cluster": cluster,
        "config": shlex.join(options),
        "folder": str(runs.folder(config, "slurm", root)),
        "addresses": str(runs.folder(config, "serve", root)),
        "served": config.engine.kind == "openai",
    }

    def render(template: str, **values: Any) -> str:
        return templates.get_template(f"{template}.j2").render(**common, **values)

    out = {"data-prepare.sbatch": render("data-prepare.sbatch", hours=cluster.hours["data"])}
    for stage, module, role in PARTS:
        common_values = {
            "module": importable(module),
            "role": role,
            "hours": cluster.hours[stage],
            "gpus": _sampling_gpus(config, role),
        }
        count = getattr(cluster.shards, stage)
        out[f"{stage}.sbatch"] = render("items.sbatch", stage=stage, merge=False, shards=count, **common_values)
        out[f"{stage}-merge.sbatch"] = render("items.sbatch", stage=f"{stage}-merge", merge=True, **common_values)
    if config.launch.sft_processes > cluster.gpus:
        raise UserError(f"launch.sft_processes is {config.launch.sft_processes} and a machine has {cluster.gpus} GPUs")
    training = {"machines": config.launch.machines, "processes": config.launch.sft_processes}
    out["sft.sbatch"] = render("sft.sbatch", hours=cluster.hours["sft"], **training)
    out["rl.sbatch"] = render("rl.sbatch", hours=cluster.hours["rl"], **rl_layout(config))
    out.update(_evaluation(config, root, render))
    out["submit.sh"] = render("submit.sh", methods=list(methods), models=list(config.eval.models))
    return out


def _sampling_gpus(config: Config, role: str) -> int:
    """GPUs of a sampling job: those of its server, or of its in-process engine."""
    wanted = gpus_of(getattr(config.serve, role)) if config.engine.kind == "openai" else config.engine.tensor_parallel
    if wanted > config.cluster.gpus:
        raise UserError(
            f"serving the {role} takes {wanted} GPUs and a machine has {config.cluster.gpus} (cluster.gpus); "
            f"lower serve.{role}.tensor_parallel or data_parallel"
        )
    return wanted


def _evaluation(config: Config, root: str | Path, render: Any) -> dict[str, str]:
    model = _sampling_gpus(config, "model")
    first, judges = model, []
    for role, key in (("judge", "evaluation"), ("extractor", "extraction")):
        judge: Judge = getattr(config.judges, key)
        if is_served(judge):
            count = gpus_of(getattr(config.serve, role))
            judges.append((role, key, judge.model, first, count))
            first += count
    values = {
        "hours": config.cluster.hours["eval"],
        "models": checkpoints(config, root),
        "model_gpus": model,
        "judges": judges,
        "shards": config.cluster.shards.eval,
    }
    return {
        "eval.sbatch": render("eval.sbatch", stage="eval", merge=False, gpus=model, **values),
        "eval-merge.sbatch": render("eval.sbatch", stage="eval-merge", merge=True, gpus=first, **values),
    }


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write the scripts and make them executable."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        methods = args.methods.split(",")
        for method in methods:
            load(args.preset, method, args.set)
        config = load(args.preset, args.method, args.set)
        options = ["--preset", args.preset, "--runs", args.runs]
        overlays = [entry[1:] for entry in args.set if entry.startswith("@")]
        settings = [entry for entry in args.set if not entry.startswith("@")]
        options += [word for name in overlays for word in ("--overlay", name)] + (
            ["--set", *settings] if settings else []
        )
        folder = runs.folder(config, "slurm", args.runs)
        texts = scripts(config, options, args.runs, methods)
        write(folder, texts)
        print(f"{len(texts)} scripts in {folder}; read them, then run: bash {folder / 'submit.sh'}")

    arguments = cli.parser("write Slurm scripts for a preset")
    arguments.add_argument("--methods", default=",".join(METHODS), help="methods to train (default: %(default)s)")
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
