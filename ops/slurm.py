"""Slurm scripts of a preset: one per kind of job, and one that submits them in order (`make slurm PRESET=paper-7b`).

Writes runs/<preset>/slurm/*.sbatch and submit.sh from ops/slurm_templates. Difficulty rollouts, tree search and evaluation
are arrays of jobs, each with its own server (`fgrpo.inference.serve`) and a shard of the items (`fgrpo.shards`); a merge
follows. Training is one job of `launch.machines` machines with a launcher on each (`fgrpo.training.launch`); the anchor stage is one
more where a method starts from it. RL gets its
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

from fgrpo import cli, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.installed import importable
from fgrpo.schema import Config
from ops.layout import check_judges, checkpoints, evaluation_judges, rl_layout, sampling_gpus

TEMPLATES = Path(__file__).resolve().parent / "slurm_templates"
METHODS = ("grpo-t", "fgrpo")
# stages whose shards are arrays of jobs: stage, module, role of each job's server
PARTS: tuple[tuple[Literal["data", "mcts"], str, str], ...] = (
    ("data", "data_curation.run", "base"),
    ("mcts", "mcts.run", "teacher"),
)


def scripts(
    config: Config,
    options: Sequence[str],
    root: str | Path = "runs",
    methods: Sequence[str] = METHODS,
    anchored: Sequence[str] = (),
) -> dict[str, str]:
    """The text of every script by file name.

    Args:
        options: command-line words of this configuration (`--preset …`).
        methods: files of configs/method to train.
        anchored: those of them that start from the model of the anchor stage, which then is a job between SFT and theirs.

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
            "gpus": sampling_gpus(config, role),
        }
        count = getattr(cluster.shards, stage)
        out[f"{stage}.sbatch"] = render("items.sbatch", stage=stage, merge=False, shards=count, **common_values)
        out[f"{stage}-merge.sbatch"] = render("items.sbatch", stage=f"{stage}-merge", merge=True, **common_values)
    if config.launch.sft_processes > cluster.gpus:
        raise UserError(f"launch.sft_processes is {config.launch.sft_processes} and a machine has {cluster.gpus} GPUs")
    training = {"machines": config.launch.machines, "processes": config.launch.sft_processes}
    for name, module in (("sft", "sft.train"), *([("anchor", "sft.anchor")] if anchored else [])):
        out[f"{name}.sbatch"] = render("sft.sbatch", stage=name, module=module, hours=cluster.hours["sft"], **training)
    check_judges(config, "training", "evaluation", "extraction")
    out["rl.sbatch"] = render("rl.sbatch", hours=cluster.hours["rl"], **rl_layout(config))
    out.update(_evaluation(config, root, render))
    out["submit.sh"] = render(
        "submit.sh", methods=list(methods), anchored=list(anchored), models=list(config.eval.models)
    )
    return out


def _evaluation(config: Config, root: str | Path, render: Any) -> dict[str, str]:
    model = sampling_gpus(config, "model")
    judges = evaluation_judges(config, model)
    last = model + sum(count for *_, count in judges)
    values = {
        "hours": config.cluster.hours["eval"],
        "models": checkpoints(config, root),
        "model_gpus": model,
        "judges": judges,
        "shards": config.cluster.shards.eval,
    }
    return {
        "eval.sbatch": render("eval.sbatch", stage="eval", merge=False, gpus=model, **values),
        "eval-merge.sbatch": render("eval.sbatch", stage="eval-merge", merge=True, gpus=last, **values),
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
        anchored = [method for method in methods if load(args.preset, method, args.set).rl.start == "anchor"]
        config = load(args.preset, args.method, args.set)
        options = ["--preset", args.preset, "--runs", args.runs]
        overlays = [entry[1:] for entry in args.set if entry.startswith("@")]
        settings = [entry for entry in args.set if not entry.startswith("@")]
        options += [word for name in overlays for word in ("--overlay", name)] + (
            ["--set", *settings] if settings else []
        )
        folder = runs.folder(config, "slurm", args.runs)
        texts = scripts(config, options, args.runs, methods, anchored)
        write(folder, texts)
        print(f"{len(texts)} scripts in {folder}; read them, then run: bash {folder / 'submit.sh'}")

    arguments = cli.parser("write Slurm scripts for a preset")
    arguments.add_argument("--methods", default=",".join(METHODS), help="methods to train (default: %(default)s)")
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
