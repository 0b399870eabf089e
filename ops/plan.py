"""Estimates a run before it starts: calls, tokens, GPU hours, memory per GPU, KV cache, judge cost and disk.

The estimate uses the preset, the real model built without weights (`ops.memory_estimate`) and the assumptions of
configs/plan.yaml. Every line shows its formula. "At most" marks upper bounds: searches end early, replies are shorter than
their limit, and training judges see correct rollouts only. Throughput, lengths and prices are assumptions, printed at the
end with their source; replace them with `--assume sampling.teacher=600`. Measured times of this preset's finished stages
and the images of its curated questions are printed too.

Command: `make plan PRESET=paper-7b` (`python -m ops.plan --preset paper-7b --overlay lora --assume gpu.utilisation=0.4`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fgrpo.config import load
from fgrpo.schema import Config
from ops import memory_estimate, wall_clock
from ops.assumptions import Assumptions, with_pixels
from ops.gpu_hours import sampling_hours, stage_hours, training_hours, walls
from ops.judge_cost import judge_cost, judge_price
from ops.measured import measured, measured_images
from ops.memory_estimate import GB, Shape
from ops.storage import checkpoints, disk, volumes
from ops.training_memory import cache, memory_lines
from ops.training_stages import stages
from ops.workload import Line, demand, likely_tokens


def totals(
    config: Config, lines: Sequence[Line], shape: Shape, assume: Assumptions, price: float | None = None
) -> list[str]:
    """The sums over all stages of this preset with one method."""
    calls = sum(line.calls for line in lines if line.sampler)
    tokens = sum(likely_tokens(line, config, assume) for line in lines)
    most = sum(line.tokens for line in lines)
    sampled = sum(sampling_hours(line, config, assume) for line in lines)
    clock = walls(config, lines, shape, assume)
    trained = sum(stage_hours(config, stage, shape, assume) for stage in stages(config))
    stored = (
        sum(checkpoints(config, stage, shape).size for stage in stages(config)) + tokens * assume["disk.bytes_a_token"]
    )
    money = {line.stage: judge_price(line, assume, price)[2] for line in lines if line.judge}
    priced = sum(value for value in money.values() if value is not None)
    unpriced = [stage for stage, value in money.items() if value is None]
    return [
        f"requests   {calls:,}",
        f"tokens     {tokens:,} likely, {most:,} at most, written",
        f"GPU hours  {sampled + trained:,.0f} busy ({sampled:,.0f} sampling and judging, {trained:,.0f} training), "
        f"{wall_clock.held_hours(clock):,.0f} held in {sum(wall.hours for wall in clock):,.1f} hours of wall clock",
        "judge cost "
        + (f"at most {priced:,.0f}" if len(unpriced) < len(money) else "unknown")
        + (f"; no prices are set for {', '.join(unpriced)}" if unpriced else ""),
        f"disk       {stored / GB:,.0f} GB",
    ]


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
        "likely: calls x lengths.* up to the limit, half of it in a tree, x search.expanded, difficulty.read, judging.correct, extraction.asked"
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
    for stage in stages(config):
        out += memory_lines(config, stage, shape, assume)
    out += [cache(config, shape, assume)]
    out += ["", "judges", *(judge_cost(line, assume, price) for line in lines if line.judge)]
    out += ["", "disk", *disk(config, shape, sum(likely.values()), assume)]
    if found := [*measured(config, root), *measured_images(config, root, assume)]:
        out += ["", "measured in this preset's run folders", *found]
    out += ["", f"total, one method ({config.method})", *totals(config, lines, shape, assume, price)]
    return [*out, "", "assumptions (configs/plan.yaml; --assume key=value)", *assume.lines()]


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
