"""Hours of a run before it starts: GPU hours of its updates and of its sampling, and the wall clock of each stage.

An update counts FLOP per token and parameter; sampling counts tokens at an assumed rate. What a method measures or compares on
changed images adds forward passes to RL (`side_passes`), as if every rollout needed each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgrpo.schema import Config
from ops import layout, wall_clock
from ops.assumptions import Assumptions
from ops.memory_estimate import Shape
from ops.storage import written_checkpoints
from ops.training_stages import (
    Stage,
    generations,
    likely_lengths,
    processes,
    prompts_per_pass,
    stages,
    trained_length,
    updates,
)
from ops.wall_clock import Wall
from ops.workload import Line, demand, likely_tokens, rl_updates, sft_batch
from rewards.base import load, needs_of

RATES = ("start.server_s", "rl.sync_s", "images.prepare_s", "disk.write_gb_s")  # of `wall_clock.Rates`


def training_hours(config: Config, shape: Shape, assume: Assumptions) -> list[str]:
    """One line for each training stage: GPU hours of its updates, with the formula."""
    out = []
    for stage in stages(config):
        length = round(trained_length(config, stage, assume))
        seen, passes, why = _passes(config, stage)
        hours = stage_hours(config, stage, shape, assume)
        gpus = config.launch.machines * processes(config, stage)
        out.append(
            f"{stage:10} {hours:>10.2f} GPU hours, {hours / gpus:.2f} on {gpus}: {seen:,} sequences x {length:,} tokens x "
            f"{passes} FLOP x {shape.parameters:,} parameters ({why}) / ({assume['gpu.tflops']:g} TFLOP/s x {assume['gpu.utilisation']:g})"
        )
    return [*out, rows_of(config, assume)]


def rows_of(config: Config, assume: Assumptions) -> str:
    """Which form rollouts and traces have in the passes of training (`rl.passes`, `sft.shared_prefix`)."""
    prompt, response = map(round, likely_lengths(config, "rl", assume))
    rl, size = config.rl, config.rl.group_size
    if rl.shared_prefix == "auto":
        said = (
            f"{rl.micro_batch} rollouts of a pass share rows ({rl.attention}): with {prompts_per_pass(config):.1f} prompts of {prompt} "
            f"tokens and responses of {response}, {trained_length(config, 'rl', assume):,.0f} tokens per rollout instead of {prompt + response:,}"
        )
        said += "" if rl.micro_batch % size == 0 else f"; rl.micro_batch={size}, a whole group, needs fewest"
    else:
        said = "each rollout has a row of its own (rl.shared_prefix=off)"
    near = "beside traces of about its length" if config.sft.group_by_length else "in random order"
    is_shared = config.sft.shared_prefix == "auto"
    traces = (
        "traces of a question share rows where a batch has several (the hours count a row for each)"
        if is_shared
        else f"each trace has a row of its own, {near}"
    )
    return f"{'rows':10} RL: {said}. SFT: {traces}"


def stage_hours(config: Config, stage: Stage, shape: Shape, assume: Assumptions) -> float:
    """GPU hours of a training stage's updates."""
    flops = assume["gpu.tflops"] * 1e12 * assume["gpu.utilisation"]
    length = round(trained_length(config, stage, assume))
    seen, passes, _ = _passes(config, stage)
    return seen * length * passes * shape.parameters / flops / 3600


def _passes(config: Config, stage: Stage) -> tuple[int, int, str]:
    """Sequences that a stage trains on, FLOP per token and parameter, and what these are."""
    if stage != "rl":
        more = "; each prompt passes once more for the anchoring loss" if stage == "anchor" else ""
        return (
            updates(config, stage) * sft_batch(config),
            8,
            f"forward 2, recomputed 2, backward 4{more}",
        )
    seen, side = rl_updates(config) * config.rl.global_batch * config.rl.group_size, side_passes(config)
    names = f", {' and '.join(side)} 2 x {sum(side.values())}" if side else ""
    return seen, 12 + 2 * sum(side.values()), f"old and reference log-probabilities 2 + 2, update 8{names}"


def side_passes(config: Config) -> dict[str, int]:
    """Forward passes that a method adds to those of the policy and the reference, by what asks for them; at most."""
    rl = config.rl
    needs = {need for name in {*rl.constraints, *rl.monitor, rl.task_reward} for need in needs_of(load(name))}
    each = {"evidence": 1, "controls": rl.probes.controls, "patches": 1, "attention": 1}
    found = {
        "probes": sum(count for need, count in each.items() if need in needs),
        "masked images": ("papo" in rl.auxiliary) + (rl.token_weights is not None),
    }
    return {name: count for name, count in found.items() if count}


def sampling_hours(line: Line, config: Config, assume: Assumptions) -> float:
    """GPU hours of sampling that a line takes; 0 where nothing is sampled, or where somebody else's endpoint answers."""
    if not line.sampler or (line.judge is not None and not layout.is_served(line.judge)):
        return 0.0
    own = 1.0
    if line.stage == "eval":
        paths = layout.checkpoints(config, "runs").values()
        own = sum(map(bool, paths)) / len(paths) if paths else 0.0
    return own * likely_tokens(line, config, assume) / assume[f"sampling.{line.sampler}"] / 3600


def walls(config: Config, lines: Sequence[Line], shape: Shape, assume: Assumptions) -> list[Wall]:
    """Wall clock of each stage on the machines of the configuration; without the judges of evaluation, an endpoint's own matter.

    Raises:
        UserError: servers or training do not fit on the machines (`ops.layout`).
    """
    hours = {line.stage: sampling_hours(line, config, assume) for line in lines}
    node = config.cluster.gpus if config.world is None else 1
    rates = wall_clock.Rates(*(assume[key] for key in RATES))
    prepared = assume["start.prepare_h"] if config.world is None else 0.0
    judges = sum(count for *_, count in layout.evaluation_judges(config, 0))
    models = {path for path in layout.checkpoints(config, "runs").values() if path}
    data, search, answers = (_samplers(config, *wanted) for wanted in (("base", 0), ("teacher", 0), ("model", judges)))
    starts = 1 if _has_servers(config) else 0
    return [
        wall_clock.sampling("data", hours["data"], data, node, starts=starts, rates=rates, preparation=prepared),
        wall_clock.sampling("mcts", hours["mcts"], search, node, starts=starts, rates=rates),
        *(_supervised(config, stage, shape, assume, rates, node) for stage in stages(config) if stage != "rl"),
        _rl(config, hours, shape, assume, rates, node),
        wall_clock.sampling("eval", hours["eval"], answers, node, starts=starts * len(models), rates=rates),
    ]


def chain(configs: Sequence[Config], shape: Shape, assume: Assumptions) -> list[Wall]:
    """Wall clock of the chain with several methods: the stages before RL and evaluation once, RL of each method.

    Args:
        configs: of the methods.
    """
    every = [(config, walls(config, demand(config, assume), shape, assume)) for config in configs]
    own = [
        replace(wall, stage=f"rl-{config.method}") for config, clock in every for wall in clock if wall.stage == "rl"
    ]
    shared = max((clock for _, clock in every), key=len)  # with the anchor stage, if a method needs it
    before = [wall for wall in shared if wall.stage not in ("rl", "eval")]
    return [*before, *own, *(wall for wall in shared if wall.stage == "eval")]


def _supervised(
    config: Config, stage: Stage, shape: Shape, assume: Assumptions, rates: wall_clock.Rates, node: int
) -> Wall:
    gpus, machines = processes(config, stage), config.launch.machines
    hours, written = stage_hours(config, stage, shape, assume), written_checkpoints(config, stage, shape)
    return wall_clock.sft(stage, hours, machines * gpus, machines * node, written, rates)


def _rl(
    config: Config, hours: dict[str, float], shape: Shape, assume: Assumptions, rates: wall_clock.Rates, node: int
) -> Wall:
    placed = layout.rl_layout(config)
    trainers = placed["machines"] * placed["processes"]
    return wall_clock.rl(
        generating=hours["rl"],
        training=stage_hours(config, "rl", shape, assume),
        judging=hours["judge-rl"],
        generations=generations(config),
        prompts=config.rl.rollout_batch,
        samplers=placed["rollout_gpus"] or trainers,
        trainers=trainers,
        judges=placed["judge_gpus"],
        syncs=config.rl.rollout_engine != "transformers",
        held=placed["nodes"] * node,
        checkpoints=written_checkpoints(config, "rl", shape),
        rates=rates,
    )


def _has_servers(config: Config) -> bool:
    return config.engine.kind == "openai"


def _samplers(config: Config, role: str, first: int) -> int:
    """GPUs that a stage samples on: of its servers, which take what the judges leave, or of its own process."""
    return layout.sampler_gpus(config, role, first) if _has_servers(config) else config.engine.tensor_parallel
