"""What `make paper` finds out before anything is read, written or served: `ops.doctor`'s findings, and what the whole chain needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval import models
from fgrpo.errors import UserError
from fgrpo.inference import addresses, serve, vllm_server
from fgrpo.policy import model_files
from fgrpo.schema import Config
from ops import connectivity, doctor, gpu_memory
from ops.connectivity import Finding
from ops.memory_estimate import GB, shape_of
from ops.paper.steps import Server, Step
from ops.storage import checkpoints
from ops.training_stages import stages

SERVERS = "servers start with"


def findings(
    configs: Sequence[Config], steps: Sequence[Step], pool: Sequence[str], root: str | Path, patience_s: float = 0.0
) -> Iterator[Finding]:
    """Findings in order; those of state "fail" stop the chain.

    Args:
        configs: the configuration of each method; the first is that of the other stages.
        steps: those that are left to do.
        pool: the GPUs, as CUDA_VISIBLE_DEVICES names them.
        patience_s: how long servers of a call that was killed may take to free their memory.
    """
    yield from (found for found in doctor.examine(widest(configs), str(root)) if not _starts_later(found))
    if len(configs) > 1 and configs[0].world is None:
        yield from disk(configs, root)
    servers = {server: None for step in steps for server in step.servers}
    if servers:
        yield from served(configs[0], list(servers), root)
    yield from endpoints(configs[0])
    yield from gpu_memory.unoccupied(pool, patience_s)


def widest(configs: Sequence[Config]) -> Config:
    """The first configuration whose method needs the anchor stage, else the first."""
    return next((config for config in configs if config.rl.start == "anchor"), configs[0])


def _starts_later(found: Finding) -> bool:
    """Whether the doctor misses a server that the chain itself starts."""
    return found.state == "warn" and "make serve-" in found.advice


def disk(configs: Sequence[Config], root: str | Path) -> Iterator[Finding]:
    """Free space for the checkpoints of SFT, of the anchor stage where a method needs it, and of every method together."""
    place = Path(root)
    first = widest(configs)
    needed = doctor.checkpoint_gb(first, place)
    for config in configs:
        if config is first:
            continue
        if not (place / config.preset / f"rl-{config.method}" / "done").exists():
            needed += checkpoints(config, "rl", shape_of(config.models.base)).size / GB
    existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / GB
    before = " and the anchor stage, " if "anchor" in stages(first) else " and "
    words = (
        f"{free:.0f} GB free for the checkpoints of SFT{before}{len(configs)} methods in {root}, {needed:.0f} needed"
    )
    if free >= needed:
        yield Finding("ok", words)
    else:
        yield Finding("fail", words, "make clean-checkpoints  # of finished stages; another disk: RUNS=<folder>")


def endpoints(config: Config) -> Iterator[Finding]:
    """Whether the endpoints of evaluated models that somebody else serves answer."""
    for name in config.eval.models:
        spec = models.load(name)
        for url in spec.engine.endpoints or ():
            if not addresses.is_pattern(url):
                yield connectivity.endpoint(url, (spec.engine.model_name or spec.path,), name, spec.engine.api_key_env)


def served(config: Config, servers: Sequence[Server], root: str | Path) -> Iterator[Finding]:
    """Whether vLLM is here, and the weights of every model that will be served (those of a stage to come aside)."""
    try:
        yield Finding("ok", f"{SERVERS} {vllm_server.executable()}")
    except UserError as error:
        yield Finding("fail", str(error), "pip install -r requirements/gpu.txt  # docs/installation.md")
    own = str(Path(root) / config.preset)
    names = {s.model or (None if s.role == "rollouts" else serve.model_of(config, s.role)): s.role for s in servers}
    for name, role in names.items():
        if name is None or name.startswith(own):
            continue
        lack = model_files.lacks(name)
        if lack:
            advice = f"# copy the rest to {name}" if Path(name).is_dir() else f"hf download {name}"
            yield Finding("fail", f"the model of the {role} server, {name}, {lack}", advice)
        else:
            yield Finding("ok", f"model of the {role} server: {name}")
