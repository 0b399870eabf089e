"""The steps of a preset on one machine: commands, servers, and the GPUs of each. Pure: nothing is started here.

GPUs are numbered within the machine's pool. A process gets its own GPUs through CUDA_VISIBLE_DEVICES, and one without GPUs gets
none of them, so no two processes of a step share one. Counts come from `ops.layout`; where a stage leaves GPUs free, its sampler
gets as many copies as fit.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from data_curation.run import is_curated
from eval import models
from eval.run import is_evaluated
from fgrpo import runs
from fgrpo.errors import UserError
from fgrpo.inference import addresses, serve
from fgrpo.installed import importable
from fgrpo.pending import pending
from fgrpo.schema import Config
from ops import gpu_memory
from ops.layout import check_judges, checkpoints, evaluation_judges, rl_layout, sampler_gpus, sampling_gpus

PREFIX = "paper-"  # of the names of our servers' address files
PYTHON = sys.executable


@dataclass(frozen=True)
class Server:
    """A server: its name, role, GPUs, and the model or the method where the role does not say it. Equal servers are kept between steps."""

    name: str
    role: str
    gpus: tuple[int, ...]
    copies: int
    model: str | None = None
    method: str | None = None  # whose start is served: that of RL differs by method

    def command(self, options: Sequence[str], port: int | None, timeout_s: float) -> list[str]:
        """The command line of `fgrpo.inference.serve`."""
        words = [PYTHON, "-m", importable("fgrpo.inference.serve"), self.role, *options]
        words += [*(["--method", self.method] if self.method else []), "--name", self.name]
        words += ["--timeout", f"{timeout_s:g}"] + (["--model", self.model] if self.model else [])
        words += ["--port", str(port)] if port is not None else []
        return [*words, "--set", f"serve.{self.role}.data_parallel={self.copies}"]


@dataclass(frozen=True)
class Step:
    """One command of the chain, its GPUs and its servers.

    Attributes:
        name: for messages and logs.
        words: the module of `python -m`, and what comes before the options.
        more: what comes after them.
        settings: overrides that point it at its servers.
        is_done: whether it has nothing left to do.
        check: raises UserError while its GPUs are not free, once the servers that it does not need are stopped.
    """

    name: str
    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    servers: tuple[Server, ...] = ()
    settings: tuple[str, ...] = ()
    is_done: Callable[[], bool] = field(default=lambda: False, compare=False)
    check: Callable[[], None] = field(default=lambda: None, compare=False)

    def command(self, options: Sequence[str]) -> list[str]:
        """The command line."""
        words = [PYTHON, "-m", *self.words, *options, *self.more]
        return words + (["--set", *self.settings] if self.settings else [])


def steps(
    config: Config, configured: Callable[[str], Config], methods: Sequence[str], root: str | Path = "runs"
) -> list[Step]:
    """The chain, in order.

    Args:
        config: of the stages before RL, and of evaluation.
        configured: the configuration of a method.
        methods: files of configs/method.
        root: of the run folders.

    Raises:
        UserError: a stage needs more GPUs than the machine has (`cluster.gpus`), or a judge needs one of its own in a stage's process.
    """
    chain = _World(config, root)
    out = [] if config.world is None else [Step("world", (importable("miniworld.write"),))]
    out += [
        chain.prepare(),
        chain.sampling("data", "data_curation.run", "base"),
        chain.sampling("mcts", "mcts.run", "teacher"),
    ]
    configs = {method: configured(method) for method in methods}
    out += [chain.supervised("sft", "sft.train")]
    anchored = [config for config in configs.values() if config.rl.start == "anchor"]
    out += [_World(anchored[0], root).supervised("anchor", "sft.anchor")] if anchored else []
    out += [_World(config, root).rl(method) for method, config in configs.items()]
    out += chain.evaluations()
    out += [Step(name, (importable(f"eval.{name}"),)) for name in ("tables", "figures", "report")]
    return out


@dataclass(frozen=True)
class _World:
    """A configuration on one machine."""

    config: Config
    root: str | Path

    @property
    def has_gpus(self) -> bool:
        """Whether a stage of the preset needs a GPU."""
        return self.config.sft.precision == "bf16" or self.samples_from_servers

    @property
    def samples_from_servers(self) -> bool:
        """Whether our own servers sample (not this process, not an address that somebody else serves)."""
        engine = self.config.engine
        return engine.kind == "openai" and any(addresses.is_pattern(entry) for entry in engine.endpoints)

    def pool(self) -> int:
        return self.config.cluster.gpus if self.has_gpus else 0

    def address(self, server: Server) -> str:
        return str(serve.address_file(self.config, self.root, server.name))

    def endpoints(self, key: str, server: Server) -> str:
        return f"{key}={json.dumps([self.address(server)])}"

    def sampler(self, role: str, first: int, model: str | None = None) -> Server:
        """A server of `role` with as many copies as fit on the GPUs from `first` on."""
        count = sampler_gpus(self.config, role, first)
        copies = count // getattr(self.config.serve, role).tensor_parallel
        return Server(PREFIX + role, role, tuple(range(first, first + count)), copies, model)

    def prepare(self) -> Step:
        """Pools and seed questions; the embedder of questions gets a GPU of its own."""
        gpus = (0,) if self.has_gpus and self.config.data.embedder != "hashing" else ()
        return Step(
            "data-prepare",
            (importable("data_curation.run"),),
            ("--prepare",),
            gpus,
            is_done=lambda: self.is_done("data"),
        )

    def sampling(self, stage: str, module: str, role: str) -> Step:
        """A stage that samples: from our server, in its own process, or from somebody else's address."""
        done = partial(self.is_done, stage)
        if self.samples_from_servers:
            server = self.sampler(role, 0)
            settings = (self.endpoints("engine.endpoints", server),)
            return Step(stage, (importable(module),), (), (), (server,), settings, done)
        gpus = sampling_gpus(self.config, role) if self.has_gpus and self.config.engine.kind != "openai" else 0
        return Step(stage, (importable(module),), (), tuple(range(gpus)), is_done=done)

    def supervised(self, stage: Literal["sft", "anchor"], module: str) -> Step:
        """SFT, or the anchor stage, which trains as SFT does."""
        wanted = self.config.launch.sft_processes if self.config.sft.precision == "bf16" else 0
        if wanted > self.pool():
            raise UserError(f"launch.sft_processes is {wanted} and the machine has {self.pool()} GPUs (cluster.gpus)")
        words = (importable("fgrpo.training.launch"), module)
        return Step(
            stage,
            words,
            gpus=tuple(range(wanted)),
            is_done=lambda: self.is_done(stage),
            check=lambda: gpu_memory.check(self.config, stage),
        )

    def rl(self, method: str) -> Step:
        """RL beside its judge and its rollout server."""
        layout = rl_layout(self.config)
        check_judges(self.config, "training")
        if layout["nodes"] > 1:
            raise UserError(
                f"RL of {method} takes {layout['nodes']} machines as configured ({layout['processes']} training processes, judge and rollouts "
                "beside them); make paper runs on one: OVERLAY=one-node, or lower launch.rl_processes"
            )
        servers: list[Server] = []
        settings: list[str] = []
        if layout["judge_gpus"]:
            first = layout["judge_first"]
            gpus = tuple(range(first, first + layout["judge_gpus"]))
            servers.append(Server(f"{PREFIX}judge", "judge", gpus, self.config.serve.judge.data_parallel))
            settings.append(self.endpoints("judges.training.endpoints", servers[-1]))
        if layout["rollout_gpus"]:
            first = layout["rollout_first"]
            gpus = tuple(range(first, first + layout["rollout_gpus"]))
            # of this method alone: a server that an earlier run sent weights to is not used again
            copies = layout["rollout_copies"]
            servers.append(Server(f"{PREFIX}rollouts-{method}", "rollouts", gpus, copies, method=method))
            settings.append(f"rl.vllm.server={self.address(servers[-1])}")
        trained = layout["processes"] if self.config.rl.precision == "bf16" else 0
        return Step(
            f"rl-{method}",
            (importable("fgrpo.training.launch"), "rl.train"),
            ("--method", method),
            tuple(range(trained)),
            tuple(servers),
            tuple(settings),
            lambda: self.is_done(f"rl-{method}"),
            lambda: gpu_memory.check(self.config, "rl"),
        )

    def evaluations(self) -> list[Step]:
        """One step for each evaluated model; the judges' servers stay up between them, and so does a model that two rows share."""
        check_judges(self.config, "evaluation", "extraction")
        judges: list[Server] = []
        settings: list[str] = []
        first = 0
        for role, key, model, at, count in evaluation_judges(self.config, 0):
            gpus = tuple(range(at, at + count))
            copies = getattr(self.config.serve, role).data_parallel
            judges.append(Server(PREFIX + role, role, gpus, copies, model))
            settings.append(self.endpoints(f"judges.{key}.endpoints", judges[-1]))
            first = at + count
        out = []
        for name, path in checkpoints(self.config, self.root).items():
            servers, more = tuple(judges), list(settings)
            own: tuple[int, ...] = ()
            if path and self.samples_from_servers and self.config.eval.engine in (None, "openai"):
                servers = (*judges, self.sampler("model", first, path))
                more.append(self.endpoints("engine.endpoints", servers[-1]))
            elif path and self.has_gpus and (self.config.eval.engine or self.config.engine.kind) != "openai":
                own = tuple(range(first, first + self.config.engine.tensor_parallel))
            words = (importable("eval.run"),)
            done = partial(self.is_evaluated, name)
            out.append(Step(f"eval-{name}", words, ("--model", name), own, servers, tuple(more), done))
        return out

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done for this configuration and the present content of its inputs, without items left to retry."""
        if stage == "data":  # its inputs are not below the run folders
            return is_curated(self.config, self.root)
        return runs.is_done(self.config, stage, self.root) and not pending(runs.folder(self.config, stage, self.root))

    def is_evaluated(self, name: str) -> bool:
        """Whether a model is evaluated; False where its checkpoint is still to be trained."""
        folder = runs.folder(self.config, f"eval/{name}", self.root)
        if not (folder / runs.DONE).exists():
            return False
        path = models.location(models.configured(name, self.config), self.config, self.root)
        if models.is_trained(name) and not Path(path).is_dir():
            return False
        return is_evaluated(self.config, name, (), self.root)


def check_pool(every: Sequence[Step]) -> None:
    """No GPU belongs to two processes of a step.

    Raises:
        UserError: one does (a fault of the layout).
    """
    for step in every:
        users = [*((step.name, gpu) for gpu in step.gpus), *((s.name, gpu) for s in step.servers for gpu in s.gpus)]
        for gpu in {gpu for _, gpu in users}:
            names = [name for name, used in users if used == gpu]
            if len(names) > 1:
                raise UserError(f"GPU {gpu} of step {step.name} would be shared by {', '.join(names)}")


def shown(words: Sequence[str], gpus: Sequence[str]) -> str:
    """A command with its GPUs, ready to paste."""
    return f"CUDA_VISIBLE_DEVICES={','.join(gpus)} {shlex.join(words)}"
