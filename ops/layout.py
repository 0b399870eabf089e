"""Which GPUs of a machine a stage's servers and processes take, for `make slurm` and `make paper` alike.

All counts come from the configuration: `serve.<role>` (GPUs per copy), `launch` (training processes), `cluster.gpus`.
"""

from __future__ import annotations

from pathlib import Path

from eval import models
from fgrpo.errors import UserError
from fgrpo.inference import addresses
from fgrpo.schema import Config, Judge, Serving


def gpus_of(serving: Serving) -> int:
    """GPUs of a server of this kind."""
    return serving.tensor_parallel * serving.data_parallel


def is_served(judge: Judge) -> bool:
    """Whether this judge runs on our own server (not the oracle, not an external API)."""
    return judge.backend == "openai" and any(addresses.is_pattern(entry) for entry in judge.endpoints)


def check_judges(config: Config, *roles: str) -> None:
    """The judges of these roles need no GPU of the process that asks them.

    Args:
        roles: keys of `judges`: "training", "evaluation", "extraction".

    Raises:
        UserError: one is loaded in that process, which trains on its GPUs or has none.
    """
    for role in roles:
        judge: Judge = getattr(config.judges, role)
        if judge.backend == "vllm":
            raise UserError(
                f"judges.{role}.backend=vllm loads {judge.model} in the process that asks it, which has no GPU for it; serve it instead: "
                f"judges.{role}.backend=openai, and a pattern of address files in judges.{role}.endpoints"
            )


def rl_layout(config: Config) -> dict[str, int]:
    """Machines of the RL job, and the GPUs of judge and rollouts; 0 GPUs: there is nothing to serve.

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


def sampler_gpus(config: Config, role: str, first: int = 0) -> int:
    """GPUs that a server of `role` takes with as many copies as fit on a machine, from GPU `first` on.

    Raises:
        UserError: not even one copy fits.
    """
    one, left = getattr(config.serve, role).tensor_parallel, config.cluster.gpus - first
    if left < one:
        raise UserError(
            f"serving the {role} takes {one} GPUs, and {left} of the machine's {config.cluster.gpus} are left "
            f"(cluster.gpus); lower serve.{role}.tensor_parallel, or the GPUs of the judges"
        )
    count: int = left // one * one
    return count


def sampling_gpus(config: Config, role: str) -> int:
    """GPUs of a sampling job: those of its server, or of its in-process engine.

    Raises:
        UserError: more than a machine has.
    """
    wanted = gpus_of(getattr(config.serve, role)) if config.engine.kind == "openai" else config.engine.tensor_parallel
    if wanted > config.cluster.gpus:
        raise UserError(
            f"serving the {role} takes {wanted} GPUs and a machine has {config.cluster.gpus} (cluster.gpus); "
            f"lower serve.{role}.tensor_parallel or data_parallel"
        )
    return wanted


def checkpoints(config: Config, root: str | Path) -> dict[str, str]:
    """The checkpoint to serve per evaluated model; "" for a model with its own endpoint."""
    out = {}
    for name in config.eval.models:
        spec = models.load(name)
        out[name] = "" if spec.engine.endpoints else models.location(spec, config, root)
    return out


def evaluation_judges(config: Config, first: int) -> list[tuple[str, str, str, int, int]]:
    """Judges of evaluation on our own servers: (role, configuration key, model, first GPU, GPUs), from GPU `first` on."""
    judges = []
    for role, key in (("judge", "evaluation"), ("extractor", "extraction")):
        judge: Judge = getattr(config.judges, key)
        if is_served(judge):
            count = gpus_of(getattr(config.serve, role))
            judges.append((role, key, judge.model, first, count))
            first += count
    return judges
