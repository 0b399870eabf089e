"""Run a preset from data to report on one machine, with the servers that each stage needs (`make paper PRESET=paper-7b`).

First checks what is missing (`ops.doctor`, models, disk, free GPU memory), then runs data, search, SFT (and the anchor stage, where a method starts from it), RL of each
method, evaluation, tables, figures and report. Servers start before the stage that needs them and stop after it; each process has GPUs of its
own (`ops.layout`). A finished stage is skipped, so the same command continues what was stopped or killed. `--plan` prints every
command with its GPUs and starts nothing. Where the preset's RL takes more than one machine, the overlay one-node is added.

Command: `python -m ops.paper --preset paper-7b [--plan]`. Logs, and the time of each step: runs/<preset>/paper.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from fgrpo import cli, run_lock, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference import serve
from fgrpo.schema import Config
from ops.assumptions import Assumptions, with_pixels
from ops.gpu_hours import chain
from ops.layout import rl_layout
from ops.memory_estimate import shape_of
from ops.paper.checks import SERVERS, findings, widest
from ops.paper.runner import Runner
from ops.paper.steps import PREFIX, Server, Step, check_pool, shown, steps
from ops.wall_clock import held_hours

METHODS = "grpo-t,fgrpo"
ONE_NODE = "@one-node"


def with_one_machine(preset: str, methods: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The overrides, with the overlay one-node below them where RL would take a second machine."""
    for method in methods:
        if rl_layout(load(preset, method, settings))["nodes"] > 1:
            return [ONE_NODE, *settings]
    return list(settings)


def words_of(preset: str, settings: Sequence[str], root: str) -> list[str]:
    """The command-line words of a configuration, for the stages' own commands."""
    out = ["--preset", preset, "--runs", root]
    for entry in settings:
        out += ["--overlay", entry[1:]] if entry.startswith("@") else ["--set", entry]
    return out


def gpu_names(config: Config, every: Sequence[Step]) -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them; none where no step takes one.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES allows fewer than `cluster.gpus`, or names one twice.
    """
    needed = [gpu for step in every for gpu in (*step.gpus, *(gpu for server in step.servers for gpu in server.gpus))]
    if not needed:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(config.cluster.gpus)] if visible is None else _visible(visible)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES names {', '.join(twice)} twice, so two processes would share a GPU; it is {visible!r}"
        )
    if not names:
        raise UserError(f"CUDA_VISIBLE_DEVICES allows no GPU; it is {visible!r}: unset it, or name the GPUs to use")
    if len(names) < config.cluster.gpus:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES allows {len(names)} GPUs, and the layout is for {config.cluster.gpus}; set cluster.gpus={len(names)}, "
            "launch.sft_processes and launch.rl_processes"
        )
    return names


def _visible(variable: str) -> list[str]:
    """The GPUs that CUDA takes from CUDA_VISIBLE_DEVICES: those before the first empty entry or -1."""
    entries = [entry.strip() for entry in variable.split(",")]
    end = next((i for i, entry in enumerate(entries) if entry in ("", "-1")), len(entries))
    return [str(int(entry)) if entry.isdecimal() else entry for entry in entries[:end]]


def plan(every: Sequence[Step], options: Sequence[str], names: Sequence[str], timeout_s: float) -> list[str]:
    """Every command with its GPUs, in order."""

    def ids(gpus: Sequence[int]) -> list[str]:
        return [names[gpu] for gpu in gpus]

    out: list[str] = []
    up: set[Server] = set()
    for number, step in enumerate(every, start=1):
        out.append(f"[{number}/{len(every)}] {step.name}{': done already' if step.is_done() else ''}")
        for server in step.servers:
            kept = " (stays up from the step before)" if server in up else ""
            out.append(f"  server  {shown(server.command(options, None, timeout_s), ids(server.gpus))}{kept}")
        command = shown(step.command(options), ids(step.gpus))
        out.append(f"  command {command if names else command.split(' ', 1)[1]}")
        up = set(step.servers)
    return out


def likely_hours(configs: Sequence[Config]) -> str:
    """One line: the wall clock of each stage and of the chain, and the GPU hours that it holds, as `make plan` estimates them."""
    first = widest(configs)
    assume = with_pixels(first, Assumptions())
    clock = chain(configs, shape_of(first.models.base), assume)
    stages = ", ".join(f"{wall.stage} {wall.hours:.1f}" for wall in clock)
    hours = sum(wall.hours for wall in clock)
    return f"likely hours of wall clock (make plan): {stages}; in all {hours:.1f} ({hours / 24:.1f} days), {held_hours(clock):,.0f} GPU hours held"


def chosen(text: str) -> list[str]:
    """The methods of `--methods`.

    Raises:
        UserError: there is none, or one is named twice.
    """
    methods = [name.strip() for name in text.split(",") if name.strip()]
    if not methods:
        raise UserError(f"--methods names no method, got {text!r}; an example: --methods {METHODS}")
    twice = sorted({name for name in methods if methods.count(name) > 1})
    if twice:
        raise UserError(f"--methods names {', '.join(twice)} twice; each method trains once, in its own folder")
    return methods


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        methods = chosen(args.methods)
        settings = with_one_machine(args.preset, methods, args.set)
        configs = [load(args.preset, method, settings) for method in methods]
        options = words_of(args.preset, settings, args.runs)
        every = steps(configs[0], lambda method: configs[methods.index(method)], methods, args.runs)
        check_pool(every)
        names = gpu_names(configs[0], every)
        if args.plan:
            print("\n".join([*plan(every, options, names, args.health_timeout), likely_hours(configs)]))
            return
        folder = runs.folder(configs[0], "paper", args.runs)
        with run_lock.lock(folder):
            runner = Runner(
                options,
                names,
                folder,
                lambda name: serve.address_file(configs[0], args.runs, name),
                port=args.port,
                healthy_s=args.health_timeout,
            )
            patience_s = runner.stop_s if runner.end_earlier() else 0.0
            for stale in runs.folder(configs[0], "serve", args.runs).glob(f"{PREFIX}*.json"):
                stale.unlink()  # of servers that were killed
            left = [step for step in every if not step.is_done()]
            failed = 0
            for found in findings(configs, left, names, args.runs, patience_s):
                failed += found.state == "fail"
                if found.state != "ok" or found.what.startswith(SERVERS):
                    print(found, flush=True)
            if failed:
                raise UserError(f"{failed} things are missing (above); nothing was started")
            runner.run(every)

    arguments = cli.parser("run a preset from data to report on one machine, with its servers")
    arguments.add_argument("--methods", default=METHODS, help="methods to train (default: %(default)s)")
    arguments.add_argument("--plan", action="store_true", help="print every command with its GPUs, and start nothing")
    arguments.add_argument(
        "--port", type=cli.port, help="of the first server, the next one has the next (default: free ones)"
    )
    arguments.add_argument(
        "--health-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="for a server to be up (default: %(default)g)",
    )
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
