"""Serve a model of a preset with vLLM: `make serve-teacher|serve-judge|serve-extractor|serve-base|serve-model PRESET=…`.

Chooses the flags by role and preset (`serve` in configs/paper.yaml: images per prompt, context, tensor and data parallelism), and
checks the model and the GPUs before it starts anything. Waits until the server is healthy, and writes its address to
runs/<preset>/serve/<name>.json, which a stage reads through `endpoints` (`fgrpo.inference.addresses`). Runs until ctrl-C or SIGTERM; then
it stops the server that it started, and nothing else, and deletes the address file. If it is killed, it leaves no server either. With
`--run` it serves while one command runs, in which "{url}" becomes the address. On a machine without GPUs it uses the CPU's flags.

Command: `python -m fgrpo.inference.serve teacher --preset paper-7b --port 8000 [--run 'python -m mcts.run --preset paper-7b' ] [-- <vLLM flags>]`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fgrpo import cli, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.hardware import Gpu, gpus
from fgrpo.inference import addresses, vllm_server
from fgrpo.inference.addresses import Address
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT, CPU_FLAGS, ROOT, Server, healthy
from fgrpo.policy import backbone, model_files, plain_tags
from fgrpo.process_guard import Guard
from fgrpo.schema import Config, Judge, Serving

ROLES = ("teacher", "judge", "extractor", "base", "rollouts", "model")
POLICIES = ("teacher", "base", "rollouts", "model")  # roles whose model is of a known family
GPU_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}
HEALTHY_S = 1800.0  # reading a 72B model from a network disk
CPU_HEALTHY_S = 600.0
# What TRL's client needs from a server (see trl/scripts/vllm_serve.py): raw endpoints, log-probabilities of the tempered
# distribution, and weights over NCCL from a GPU (from a CPU they come as a file, rl/vllm_rollouts.py).
ROLLOUT_FLAGS = ("--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1")
COMPACT_JSON = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))
TRUSTING = ("--trust-request-mm-kwargs",)  # a request may name the bounds of its images
NCCL = ("--weight-transfer-config", json.dumps({"backend": "nccl"}))
ROLLOUT_ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # allows weights to be replaced: never on an open network
# On a CPU, vLLM's worker needs our extension; without it new weights would not reach all of its layers.
EXTENSION = ("--worker-extension-cls", "fgrpo.inference.vllm_extension.PlainLinears")
CPU_ROLLOUT_ENVIRONMENT = {**CPU_ENVIRONMENT, **ROLLOUT_ENVIRONMENT, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Order:
    """A server to start: the model (also its served name), and the flags and environment of `vllm serve`."""

    role: str
    model: str
    flags: tuple[str, ...]
    environment: dict[str, str]


def model_of(config: Config, role: str, model: str | None = None, root: str | Path = "runs") -> str:
    """The model of a role in the preset (rollouts: the model that RL starts from).

    Raises:
        UserError: an unknown role, a judge that is no served model (the oracle, OpenAI's own), or no model named.
    """
    if role == "model":
        if not model:
            raise UserError(
                "the role model needs the model to serve: MODEL=runs/<preset>/rl-fgrpo/final, or a name of the hub"
            )
        return model
    if role == "rollouts":
        return model or str(runs.require(runs.folder(config, config.rl.start, root) / "final", config.rl.start))
    if role in ("teacher", "base"):
        return model or str(getattr(config.models, role))
    judge: Judge = config.judges.training if role == "judge" else config.judges.extraction
    key = f"judges.{'training' if role == 'judge' else 'extraction'}"
    if judge.backend != "openai":
        raise UserError(
            f"{key} of preset {config.preset} is the backend {judge.backend!r}, so there is nothing to serve; "
            f'SET="{key}.backend=openai {key}.model=…" changes that'
        )
    return model or judge.model


def check_model(role: str, model: str) -> dict[str, object]:
    """The model's configuration, if it can play the role.

    Raises:
        UserError: no such model, a policy of an unknown family, or a grounding judge that takes no images.
    """
    model_config = model_files.check_policy(model) if role in POLICIES else model_files.config_of(model)
    if role == "judge" and not model_files.sees(model_config):
        raise UserError(
            f"the judge {model} takes no images (type {model_config.get('model_type')!r}), and grounding is judged with them; "
            "set judges.training.model to a vision-language model"
        )
    return model_config


def judge_flags(config: Config, role: str) -> tuple[str, ...]:
    """Flags of a judge's server: JSON without white space, with which a model could fill a reply. With `images: file` also the
    permission to open the images below the data's root, which are sent by name."""
    if role not in ("judge", "extractor"):
        return ()
    judge = config.judges.training if role == "judge" else config.judges.extraction
    if judge.images != "file":
        return COMPACT_JSON
    return (*COMPACT_JSON, "--allowed-local-media-path", str(Path(config.data.root).resolve()))


def pixel_flags(config: Config, role: str, model: str) -> tuple[str, ...]:
    """The bounds of images, where `policy.pixels` sets them: of the base model, which has others of its own, and of the rollouts.

    A checkpoint's processor carries them, and requests of evaluation name them, which vLLM takes with `TRUSTING` alone. The teacher
    and judges keep their own.

    Raises:
        UserError: the policy to sample from was trained with other bounds.
    """
    asked, trusting = config.policy.pixels, TRUSTING if role in ("base", "model") else ()
    if role not in ("base", "rollouts") or not asked.is_set:
        return trusting
    bounds = (model_files.carried_bounds if role == "rollouts" else model_files.pixel_bounds)(model, asked)
    return (*trusting, "--mm-processor-kwargs", json.dumps(model_files.processor_arguments(bounds)))


def tokenizer_flags(model: str, folder: Path) -> tuple[str, ...]:
    """The server's own tokenizer, in `folder`, where tags of the answer format are untrained tokens of the model's (Qwen3-VL)."""
    plain = plain_tags.plain_copy(model, folder)
    return () if plain is None else ("--tokenizer", plain)


def order(
    config: Config,
    role: str,
    devices: Sequence[Gpu],
    model: str | None = None,
    extra: Sequence[str] = (),
    root: str | Path = "runs",
) -> Order:
    """The server of a role on these GPUs (none: on the CPU).

    Args:
        extra: flags for `vllm serve` that override ours.

    Raises:
        UserError: the model cannot play the role, or there are too few GPUs.
    """
    name = model_of(config, role, model, root)
    model_config = check_model(role, name)
    serving: Serving = getattr(config.serve, role)
    positions = model_files.positions(model_config)
    context = ["--max-model-len", str(min(serving.context, positions or serving.context))]
    if any(flag.split("=")[0] in ("--max-model-len", "--hf-overrides") for flag in extra):
        context = []
    special = ROLLOUT_FLAGS if role == "rollouts" else judge_flags(config, role)
    special = (*special, *pixel_flags(config, role, name))
    if role in POLICIES:
        special = (*special, *tokenizer_flags(name, runs.folder(config, "serve", root) / f"tokenizer-{role}"))
    environment = ROLLOUT_ENVIRONMENT if role == "rollouts" else {}
    if not devices and role == "rollouts":
        return Order(role, name, (*CPU_FLAGS, *context, *special, *EXTENSION, *extra), dict(CPU_ROLLOUT_ENVIRONMENT))
    if not devices:
        return Order(role, name, (*CPU_FLAGS, *context, *special, *extra), dict(CPU_ENVIRONMENT))
    needed = serving.tensor_parallel * serving.data_parallel
    if needed > len(devices):
        raise UserError(
            f"serving the {role} takes {needed} GPUs (serve.{role}.tensor_parallel {serving.tensor_parallel} x "
            f"data_parallel {serving.data_parallel}) and {len(devices)} are here; "
            f'SET="serve.{role}.tensor_parallel={len(devices)} serve.{role}.data_parallel=1", or use more GPUs'
        )
    images = json.dumps(backbone.assumed(model_config.get("model_type")).vllm_limits(serving.images))
    flags = [
        *("--dtype", serving.dtype, *context),
        *(("--limit-mm-per-prompt", images) if model_files.sees(model_config) else ()),
        *("--tensor-parallel-size", str(serving.tensor_parallel)),
        *(("--data-parallel-size", str(serving.data_parallel)) if serving.data_parallel > 1 else ()),
        *("--gpu-memory-utilization", f"{serving.memory_share:g}"),
    ]
    special = (*special, *NCCL) if role == "rollouts" else special
    return Order(role, name, (*flags, *special, *extra), {**GPU_ENVIRONMENT, **environment})


def address_file(config: Config, root: str | Path, name: str) -> Path:
    """The address file of the server `name`."""
    return runs.folder(config, "serve", root) / f"{name}{addresses.SUFFIX}"


def check_free(path: Path) -> None:
    """Raises UserError if the server of this name is up already."""
    if path.exists():
        running = addresses.read(path)
        if healthy(running.url):
            raise UserError(
                f"{running.model} is served at {running.url} already ({path}); stop that server, or start this one with another --name"
            )


def serve(
    ordered: Order, path: Path, *, host: str, shown_as: str, port: int | None, timeout_s: float, command: Sequence[str]
) -> int:
    """Serve until interrupted, or until `command` ends; returns its exit code (0 without one).

    Args:
        path: the address file.
        host: the interface to listen on; `shown_as`: the host name in its address.
        command: a command's arguments; "{url}" in them becomes the address.

    Raises:
        UserError: the port is in use, the server died or never became healthy (shows its last log lines).
    """
    check_free(path)
    log = path.with_suffix(".log")
    server = Server(
        ordered.model,
        log=log,
        host=host,
        port=port,
        flags=ordered.flags,
        environment=ordered.environment,
        timeout_s=timeout_s,
    )
    print(f"starting: {shlex.join(server.command())}\nlog: {log}", flush=True)
    with ExitStack() as stack:
        stack.callback(Guard().release)  # ends the server if this process is killed
        stack.enter_context(server)
        url = f"http://{shown_as}:{server.port}/v1"
        addresses.write(path, Address(ordered.role, ordered.model, url, shown_as, server.pid))
        try:
            if command:
                return _run([argument.replace("{url}", url) for argument in command])
            print(f"{ordered.model} is served at {url}; the address is in {path}; ctrl-C stops it", flush=True)
            server.wait()
        except KeyboardInterrupt:
            print("stopping the server", flush=True)
            return 0 if not command else 130
        finally:
            path.unlink(missing_ok=True)
    return 0


def _run(command: Sequence[str]) -> int:
    """Run a command to its end; terminate it if this process is interrupted."""
    with subprocess.Popen(command) as running:
        try:
            return running.wait()
        finally:
            running.terminate()


def _on_term(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM (from Slurm or `kill`) and a closing terminal like ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        vllm_server.executable()  # before the hub is asked for the model
        devices = [] if args.cpu else gpus()
        ordered = order(config, args.role, devices, args.model, extra, args.runs)
        host, shown_as = ("0.0.0.0", socket.getfqdn()) if args.public else ("127.0.0.1", "127.0.0.1")
        signal.signal(signal.SIGTERM, _on_term)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, _on_term)
        path = address_file(config, args.runs, args.name or args.role)
        timeout = args.timeout or (HEALTHY_S if devices else CPU_HEALTHY_S)
        code = serve(
            ordered,
            path,
            host=host,
            shown_as=shown_as,
            port=args.port,
            timeout_s=timeout,
            command=shlex.split(args.run or ""),
        )
        if code:
            sys.exit(code)

    arguments = cli.parser("serve a model of a preset with vLLM; arguments after -- are further flags of `vllm serve`")
    arguments.add_argument("role", choices=ROLES, help="the role whose model to serve; judge is the training judge")
    arguments.add_argument("--model", help="a model instead of the preset's (required by the role model)")
    arguments.add_argument("--name", help="name of the address file (default: the role); several servers need several")
    arguments.add_argument("--port", type=cli.port, help="default: a free one")
    arguments.add_argument(
        "--public", action="store_true", help="listen on all interfaces, for stages on other machines"
    )
    arguments.add_argument("--timeout", type=float, metavar="SECONDS", help="time until it must be healthy")
    arguments.add_argument("--cpu", action="store_true", help="serve on the CPU even if there are GPUs")
    arguments.add_argument("--run", metavar="COMMAND", help="serve while this command runs; {url} in it is the address")
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    extra = argv[end + 1 :]
    cli.run(body, arguments, argv[:end])


if __name__ == "__main__":
    main()
