"""Estimates a run before it starts: calls, tokens, GPU hours, memory per GPU, KV cache, judge cost and disk.

The estimate uses the preset, the real model built without weights (`ops.memory_estimate`) and the assumptions of
configs/plan.yaml. Every line shows its formula. "At most" marks upper bounds: searches end early, replies are shorter than
their limit, and training judges see correct rollouts only. Throughput, lengths and prices are assumptions, printed at the
end with their source; replace them with `--assume sampling.teacher=600`. Measured times of this preset's finished stages
are printed too.

Command: `make plan PRESET=paper-7b` (`python -m ops.plan --preset paper-7b --overlay lora --assume gpu.utilisation=0.4`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fgrpo.config import load
from fgrpo.inference.budget import Budget
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema import Config, Judge
from fgrpo.training.checkpoints import SFT_KEPT
from ops import memory_estimate, wall_clock
from ops.assumptions import Assumptions
from ops.measured import measured
from ops.memory_estimate import Part, Shape
from ops.workload import Line, demand, likely_tokens, rl_updates, sft_batch, sft_updates

BYTES = {"fp32": 4, "bf16": 2}  # per weight
GB = 1e9
STAGES: tuple[Literal["sft", "rl"], ...] = ("sft", "rl")


def training_hours(config: Config, shape: Shape, assume: Assumptions) -> list[str]:
    """One line each for SFT and RL: GPU hours of their updates, with the formula."""
    out = []
    for stage in STAGES:
        length = round(trained_length(config, stage, assume))
        seen, passes, why = _passes(config, stage)
        hours = stage_hours(config, stage, shape, assume)
        gpus = config.launch.machines * getattr(config.launch, f"{stage}_processes")
        out.append(
            f"{stage:10} {hours:>10.2f} GPU hours, {hours / gpus:.2f} on {gpus}: {seen:,} sequences x {length:,} tokens x "
            f"{passes} FLOP x {shape.parameters:,} parameters ({why}) / ({assume['gpu.tflops']:g} TFLOP/s x {assume['gpu.utilisation']:g})"
        )
    return [*out, rows_of(config, assume)]


def rows_of(config: Config, assume: Assumptions) -> str:
    """Which form rollouts and traces have in the passes of training (`rl.passes`, `sft.shared_prefix`)."""
    prompt, response = (round(assume[f"lengths.{part}"]) for part in ("prompt", "response"))
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
    traces = "traces of a question share rows" if is_shared else f"each trace has a row of its own, {near}"
    return f"{'rows':10} RL: {said}. SFT: {traces}"


def prompts_per_pass(config: Config, *, most: bool = False) -> float:
    """Prompts that one pass of RL computes, on average or at most; of consecutive rollouts, which hold whole groups."""
    rows, size = config.rl.micro_batch, config.rl.group_size
    if config.rl.shared_prefix == "off":
        return rows
    if rows % size == 0:
        return rows // size
    return min(rows, 1 + math.ceil((rows - 1) / size)) if most else 1 + (rows - 1) / size


def trained_length(config: Config, stage: Literal["sft", "rl"], assume: Assumptions) -> float:
    """Tokens that one sequence of training takes, its share of the prompt included."""
    share = prompts_per_pass(config) / config.rl.micro_batch if stage == "rl" else 1.0
    return share * assume["lengths.prompt"] + assume["lengths.response"]


def stage_hours(config: Config, stage: Literal["sft", "rl"], shape: Shape, assume: Assumptions) -> float:
    """GPU hours of a training stage's updates."""
    flops = assume["gpu.tflops"] * 1e12 * assume["gpu.utilisation"]
    length = round(trained_length(config, stage, assume))
    seen, passes, _ = _passes(config, stage)
    return seen * length * passes * shape.parameters / flops / 3600


def _passes(config: Config, stage: Literal["sft", "rl"]) -> tuple[int, int, str]:
    """Sequences that a stage trains on, FLOP per token and parameter, and what these are."""
    if stage == "sft":
        return sft_updates(config) * sft_batch(config), 8, "forward 2, recomputed 2, backward 4"
    seen = rl_updates(config) * config.rl.global_batch * config.rl.group_size
    return seen, 12, "old and reference log-probabilities 2 + 2, update 8"


def sampling_hours(line: Line, config: Config, assume: Assumptions) -> float:
    """GPU hours of sampling that a line takes; 0 where nothing is sampled or no model judges."""
    served = line.sampler and (line.judge is None or line.judge.backend == "openai")
    return likely_tokens(line, config, assume) / assume[f"sampling.{line.sampler}"] / 3600 if served else 0.0


def walls(config: Config, lines: Sequence[Line], shape: Shape, assume: Assumptions) -> list[wall_clock.Wall]:
    """Wall clock of each stage on the machines of the configuration; without the judges of evaluation, an endpoint's own matter."""
    hours = {line.stage: sampling_hours(line, config, assume) for line in lines}
    node, launch = config.cluster.gpus, config.launch
    trained = {stage: stage_hours(config, stage, shape, assume) for stage in STAGES}
    written = {stage: written_checkpoints(config, stage, shape) for stage in STAGES}
    rate = assume["disk.write_gb_s"]
    return [
        *(wall_clock.sampling(stage, hours[stage], node, "GPUs of a machine") for stage in ("data", "mcts")),
        wall_clock.sft(trained["sft"], launch.machines * launch.sft_processes, *written["sft"], rate),
        wall_clock.rl(
            config,
            generating=hours["rl"],
            training=trained["rl"],
            judging=hours["judge-rl"],
            generations=generations(config),
            checkpoints=written["rl"][0],
            checkpoint_bytes=written["rl"][1],
            sync_s=assume["rl.sync_s"],
            write_gb_s=rate,
        ),
        wall_clock.sampling("eval", hours["eval"], node, "GPUs of a machine"),
    ]


def generations(config: Config) -> int:
    """How often RL generates rollouts."""
    return math.ceil(rl_updates(config) * config.rl.global_batch / config.rl.rollout_batch)


def written_checkpoints(config: Config, stage: Literal["sft", "rl"], shape: Shape) -> tuple[int, float]:
    """Checkpoints that a training stage writes, most of which it deletes again, and the bytes of one."""
    section: Any = getattr(config, stage)
    updates = sft_updates(config) if stage == "sft" else rl_updates(config)
    trained, adapters = trained_parameters(config, stage, shape), section.lora is not None
    one = memory_estimate.checkpoints(shape, trained, 1, 0, half=section.precision == "bf16", adapters=adapters)
    return math.ceil(updates / section.save_steps), one.size


def volumes(config: Config, shape: Shape, assume: Assumptions) -> list[str]:
    """One line each: rollouts, pixel values of a generation, and what checkpoints write over a run."""
    rl = config.rl
    rollouts = rl.rollout_batch * rl.group_size
    each = rollouts / (config.launch.machines * config.launch.rl_processes)
    bounds = pixel_bounds(config.models.base, config.policy.pixels)
    likely = memory_estimate.pixel_bytes(assume["images.tokens"], bounds.factor)
    most = memory_estimate.pixel_bytes(min(rl.max_prompt_length, bounds.max_pixels / bounds.factor**2), bounds.factor)
    out = [
        f"rollouts   {generations(config) * rollouts:,} in {generations(config):,} generations of {rollouts:,} ({rl.rollout_batch} prompts x {rl.group_size})",
        f"pixels     {each * likely / GB:.2f} GB of pixel values in a process' generation of {each:g} rollouts, at most {each * most / GB:.1f}: "
        f"image tokens ({assume['images.tokens']:g}; limit {rl.max_prompt_length:,}) x {bounds.factor}^2 x 6 values x 4 bytes",
    ]
    for stage in STAGES:
        number, size = written_checkpoints(config, stage, shape)
        save = getattr(config, stage).save_steps
        out.append(
            f"{stage:10} {number:,} checkpoints of {size / GB:,.0f} GB written in all, {number * size / 1e12:.1f} TB ({stage}.save_steps={save})"
        )
    return out


def trained_parameters(config: Config, stage: Literal["sft", "rl"], shape: Shape) -> int:
    """Parameters that a stage trains; with LoRA, the adapters alone."""
    section: Any = getattr(config, stage)
    if section.lora is not None:
        return shape.adapters(section.lora)
    return shape.trainable(freeze_vision=section.freeze_vision, freeze_projector=section.freeze_projector)


def memory(config: Config, stage: Literal["sft", "rl"], shape: Shape, length: int, reply: int) -> list[Part]:
    """Memory of one GPU in SFT or RL at sequences of `length` tokens, `reply` of them with logits."""
    section: Any = getattr(config, stage)
    trainable = trained_parameters(config, stage, shape)
    gpus = config.launch.machines * getattr(config.launch, f"{stage}_processes")
    half = section.precision == "bf16"
    rows = config.sft.batch_size if stage == "sft" else config.rl.micro_batch
    states = memory_estimate.states(
        shape,
        trainable,
        gpus,
        sharding(section.deepspeed),
        half=half,
        adapters=section.lora is not None,
        reference=stage == "rl" and config.rl.kl_coef > 0 and section.lora is None,
    )
    checkpointing = stage == "sft" or config.rl.gradient_checkpointing
    prompts = prompts_per_pass(config, most=True) if stage == "rl" else rows
    tokens = round(prompts * (length - reply)) + rows * reply
    return [
        *states,
        *memory_estimate.activations(shape, tokens, rows * reply, half=half, checkpointing=checkpointing),
    ]


def sharding(settings: str | None) -> memory_estimate.Sharding:
    """How a DeepSpeed file shards; "none" without one."""
    if settings is None:
        return "none"
    stage = json.loads(Path(settings).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    names: dict[int, memory_estimate.Sharding] = {3: "zero3", 2: "zero2"}
    return names.get(stage, "none")


def cache(config: Config, shape: Shape, assume: Assumptions) -> str:
    """One line: the KV cache of a generation of rollouts, and the room for it on a GPU of the rollout server."""
    rl, serving = config.rl, config.serve.rollouts
    number = BYTES[rl.precision]
    each = memory_estimate.cache_bytes(shape, number)
    rollouts = rl.rollout_batch * rl.group_size
    most = rollouts * (rl.max_prompt_length + rl.max_response_length)
    likely = rollouts * round(assume["lengths.prompt"] + assume["lengths.response"])
    free = assume["gpu.memory_gb"] * GB * serving.memory_share - number * shape.parameters / serving.tensor_parallel
    return (
        f"KV cache   {each:,} bytes per token (2 x {shape.layers} layers x {shape.kv_width} wide x {number}); a generation of "
        f"{rollouts} rollouts: at most {most * each / GB:,.0f} GB, likely {likely * each / GB:,.1f} GB; a GPU of "
        f"{assume['gpu.memory_gb']:g} GB has about {max(free, 0) / GB:,.0f} GB for it next to the weights; vLLM queues the rest"
    )


def parameters(config: Config) -> int:
    """Parameters of `models.base`, counted on the model built without weights."""
    return memory_estimate.shape_of(config.models.base).parameters


def judge_cost(line: Line, assume: Assumptions, price: float | None) -> str:
    """One line: the cost of a line of judging."""
    assert line.judge is not None
    judge = line.judge
    reads, writes, money = judge_price(line, assume, price)
    if judge.backend != "openai" or not line.calls:
        return f"{line.stage:10} nothing: {'no calls' if not line.calls else f'the backend {judge.backend} calls no model'}"
    counted = f"{reads:,} tokens read, at most {writes:,} written"
    if money is None:
        role = {"judge-rl": "training", "judge-eval": "evaluation", "extract": "extraction"}[line.stage]
        return f"{line.stage:10} {judge.model}: {counted}; set judges.{role}.prompt_price and completion_price for its cost"
    return (
        f"{line.stage:10} {judge.model}: {counted}; at most {money:,.0f} (prices per million: {_prices(judge, price)})"
    )


def judge_price(line: Line, assume: Assumptions, price: float | None) -> tuple[int, int, float | None]:
    """(tokens read, most tokens written, most money) of a line of judging; money is None without prices."""
    assert line.judge is not None
    length = assume["lengths.extract_prompt" if line.stage == "extract" else "lengths.judge_prompt"]
    reads, writes = round(line.calls * length), line.tokens
    if line.judge.backend != "openai" or not line.calls:
        return reads, writes, 0.0
    prices = (line.judge.prompt_price, line.judge.completion_price) if price is None else (0.0, price)
    return reads, writes, Budget(*prices).price(reads, writes)


def _prices(judge: Judge, price: float | None) -> str:
    return f"{judge.prompt_price:g}, {judge.completion_price:g}" if price is None else f"0, {price:g}"


def totals(
    config: Config, lines: Sequence[Line], shape: Shape, assume: Assumptions, price: float | None = None
) -> list[str]:
    """The sums over all stages of this preset with one method."""
    calls = sum(line.calls for line in lines if line.sampler)
    tokens = sum(likely_tokens(line, config, assume) for line in lines)
    most = sum(line.tokens for line in lines)
    sampled = sum(sampling_hours(line, config, assume) for line in lines)
    trained = sum(stage_hours(config, stage, shape, assume) for stage in STAGES)
    stored = sum(checkpoints(config, stage, shape).size for stage in STAGES) + tokens * assume["disk.bytes_a_token"]
    money = {line.stage: judge_price(line, assume, price)[2] for line in lines if line.judge}
    priced = sum(value for value in money.values() if value is not None)
    unpriced = [stage for stage, value in money.items() if value is None]
    return [
        f"requests   {calls:,}",
        f"tokens     {tokens:,} likely, {most:,} at most, written",
        f"GPU hours  {sampled + trained:,.0f}: {sampled:,.0f} sampling and judging, {trained:,.0f} training",
        "judge cost "
        + (f"at most {priced:,.0f}" if len(unpriced) < len(money) else "unknown")
        + (f"; no prices are set for {', '.join(unpriced)}" if unpriced else ""),
        f"disk       {stored / GB:,.0f} GB",
    ]


def checkpoints(config: Config, stage: Literal["sft", "rl"], shape: Shape) -> Part:
    """The most disk that a training stage uses: one checkpoint is written before the oldest is deleted."""
    section: Any = getattr(config, stage)
    kept = SFT_KEPT if stage == "sft" else config.rl.keep_checkpoints
    number = math.ceil(rl_updates(config) / config.rl.save_steps) if kept is None else kept + 1
    trained, adapters = trained_parameters(config, stage, shape), section.lora is not None
    whole = 2 if stage == "sft" else 1  # the best state and a new best one, or the last one
    return memory_estimate.checkpoints(
        shape, trained, number, whole, half=section.precision == "bf16", adapters=adapters
    )


def disk(config: Config, shape: Shape, tokens: int, assume: Assumptions) -> list[str]:
    """One line each: disk of SFT, of RL with one method, and of sampled text."""
    parts = [(stage, checkpoints(config, stage, shape)) for stage in STAGES]
    trained = [f"{stage:10} about {part.size / GB:,.1f} GB: {part.formula}" for stage, part in parts]
    each = assume["disk.bytes_a_token"]
    how = f"{tokens:,} tokens x {each:g} bytes (trees, rollouts, answers, verdicts)"
    return [*trained, f"texts      about {tokens * each / GB:,.2f} GB: {how}"]


def report(config: Config, assume: Assumptions, root: str | Path, price: float | None = None) -> list[str]:
    """All lines of the plan."""
    shape = memory_estimate.shape_of(config.models.base)
    assume = with_pixels(config, assume)
    lines = demand(config, assume)
    out = [f"plan for preset {config.preset}, method {config.method}"]
    if config.world is not None:
        out.append("the miniature runs on a CPU; the hours below are those of a GPU of the paper")
    mcts = config.mcts
    steps = mcts.simulations * mcts.children * (1 + mcts.rollouts)
    most = mcts.simulations * mcts.children * (mcts.expand_attempts + mcts.rollouts)
    out += [
        f"a tree needs {steps} continuations if every proposal is accepted, at most {most} if many are rejected, "
        f"likely {steps * assume['search.expanded']:.0f}, since searches end early",
        "",
    ]
    out += [f"{'stage':10} {'calls':>12} {'tokens <=':>16} {'likely':>16} {'GPU hours':>10}  how"]
    likely = {line.stage: likely_tokens(line, config, assume) for line in lines}
    for line in lines:
        hours = sampling_hours(line, config, assume)
        out.append(
            f"{line.stage:10} {line.calls:>12,} {line.tokens:>16,} {likely[line.stage]:>16,} {hours:>10.2f}  {line.formula}"
        )
    out.append(
        "likely: calls x lengths.* up to the limit, half of it in a tree, x search.expanded, difficulty.read, extraction.asked"
    )
    out.append("GPU hours: likely tokens (written) / sampling.<sampler> / 3600; that rate covers reading")
    out += ["", "training (likely lengths)", *training_hours(config, shape, assume)]
    clock = walls(config, lines, shape, assume)
    out += ["", "wall clock (judges of evaluation aside)", *(wall.line() for wall in clock), wall_clock.total(clock)]
    out += ["", "volumes of training", *volumes(config, shape, assume)]
    out += [
        "",
        f"memory of one GPU ({config.models.base}: {shape.parameters:,} parameters, vision {shape.encoder + shape.projector:,})",
    ]
    for stage in STAGES:
        out += _memory_lines(config, stage, shape, assume)
    out += [cache(config, shape, assume)]
    out += ["", "judges", *(judge_cost(line, assume, price) for line in lines if line.judge)]
    out += ["", "disk", *disk(config, shape, sum(likely.values()), assume)]
    if times := measured(config, root):
        out += ["", "measured in this preset's run folders", *times]
    out += ["", f"total, one method ({config.method})", *totals(config, lines, shape, assume, price)]
    return [*out, "", "assumptions (configs/plan.yaml; --assume key=value)", *assume.lines()]


def with_pixels(config: Config, assume: Assumptions) -> Assumptions:
    """`assume` with the image tokens that `policy.pixels` allows; as it is where that sets no bound."""
    asked = config.policy.pixels
    return assume.with_images_of(pixel_bounds(config.models.base, asked)) if asked.is_set else assume


def likely_memory(config: Config, stage: Literal["sft", "rl"], shape: Shape, assume: Assumptions) -> list[Part]:
    """Memory of one GPU at sequences of the assumed length."""
    assume = with_pixels(config, assume)
    most, replies = _limits(config, stage)
    reply = min(replies, round(assume["lengths.response"]))
    length = min(most, round(assume["lengths.prompt"]) + reply)
    return memory(config, stage, shape, length, length if stage == "sft" else reply)


def _limits(config: Config, stage: Literal["sft", "rl"]) -> tuple[int, int]:
    """(most tokens per sequence, how many of them have logits)."""
    if stage == "sft":
        return config.sft.max_length, config.sft.max_length
    return config.rl.max_prompt_length + config.rl.max_response_length, config.rl.max_response_length


def _memory_lines(config: Config, stage: Literal["sft", "rl"], shape: Shape, assume: Assumptions) -> list[str]:
    most, replies = _limits(config, stage)
    parts = likely_memory(config, stage, shape, assume)
    upper = sum(part.size for part in memory(config, stage, shape, most, replies))
    total = sum(part.size for part in parts)
    room = "" if upper <= assume["gpu.memory_gb"] * GB else f", more than the GPU's {assume['gpu.memory_gb']:g}"
    return [
        f"{stage:10} {total / GB:>8.1f} GB likely, {upper / GB:.1f} GB with every sequence at its limit of {most:,} tokens{room}",
        *(f"{'':10} {part.size / GB:>8.1f} GB {part.name}: {part.formula}" for part in parts),
    ]


def main() -> None:
    """Print the plan."""
    from fgrpo.cli import parser, run

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        print("\n".join(report(config, Assumptions(args.assume), args.runs, args.judge_price)))

    arguments = parser("estimate a run: calls, tokens, hours, memory, cost, disk")
    arguments.add_argument(
        "--assume", nargs="*", default=[], metavar="KEY=VALUE", help="assumptions of configs/plan.yaml"
    )
    arguments.add_argument("--judge-price", type=float, metavar="PRICE", help="per million tokens that judges write")
    run(body, arguments)


if __name__ == "__main__":
    main()
