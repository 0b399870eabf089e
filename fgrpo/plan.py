"""What a run will take before it takes it: calls, tokens, GPU hours, memory a GPU, KV cache, judge cost and disk.

From the preset, the real model built without weights (`fgrpo.footprint`) and the assumptions of configs/plan.yaml. Every line
says its formula; "at most" marks upper bounds: searches end early, replies are shorter than their limit, and training judges
see correct rollouts only. Throughput, lengths and prices are assumptions, printed at the end with their source: replace them
(`--assume sampling.teacher=600`). What stages of this preset have already taken is printed beside.

Command: `make plan PRESET=paper-7b` (`python -m fgrpo.plan --preset paper-7b --overlay lora --assume gpu.utilisation=0.4`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fgrpo import footprint, runs
from fgrpo.assumptions import Assumptions
from fgrpo.config import load
from fgrpo.footprint import Part, Shape
from fgrpo.meter import Budget
from fgrpo.schema import Config, Judge

JUDGED = ("consistency", "semantic_grounding")  # rewards that ask a judge
BYTES = {"fp32": 4, "bf16": 2}  # a weight
GB = 1e9
SFT_KEPT = 2  # checkpoints of SFT (sft/train.py)
STAGES: tuple[Literal["sft", "rl"], ...] = ("sft", "rl")


@dataclass(frozen=True)
class Line:
    """One stage's demand: sampled continuations, tokens written at most, who samples them, and how that was worked out.

    `sampler` is the key of its throughput (`sampling.<sampler>`), "" where nothing is sampled.
    """

    stage: str
    calls: int
    tokens: int
    formula: str
    sampler: str = ""
    judge: Judge | None = None


def demand(config: Config) -> list[Line]:
    """Calls and tokens of the stages that sample or train, in the order of the chain."""
    data, mcts, rl = config.data, config.mcts, config.rl
    wanted = sum(source.rl for source in data.sources.values())
    seeds = sum(source.seed for source in data.sources.values())
    difficulty = wanted * data.difficulty_rollouts
    steps = seeds * mcts.simulations * mcts.children
    generations = rl_updates(config)
    rollouts = generations * rl.global_batch * rl.group_size
    return [
        Line(
            "data",
            difficulty,
            difficulty * data.difficulty_max_new_tokens,
            f"at least {wanted:,} questions x {data.difficulty_rollouts} rollouts (more are read where the filter drops many)",
            "base",
        ),
        Line(
            "mcts",
            steps * (1 + mcts.rollouts),
            steps * (mcts.step_max_new_tokens + mcts.rollouts * mcts.rollout_max_new_tokens),
            f"{seeds:,} trees x {mcts.simulations} simulations x {mcts.children} children x (1 step + {mcts.rollouts} rollouts); "
            f"more only where proposals are rejected, of which each expansion asks for up to {mcts.expand_attempts} rounds",
            "teacher",
        ),
        Line(
            "sft",
            sft_updates(config),
            0,
            f"updates: at most {traces(config):,} traces x {config.sft.epochs:g} epochs / {sft_batch(config)} a batch",
        ),
        Line(
            "rl",
            rollouts,
            rollouts * rl.max_response_length,
            f"{generations:,} updates x {rl.global_batch} prompts x {rl.group_size} rollouts",
            "rollouts",
        ),
        _training_judges(config, rollouts),
        *_evaluation(config),
    ]


def traces(config: Config) -> int:
    """Traces that SFT trains on, at most."""
    chains = {"direct": config.mcts.direct_chains, "corrected": config.mcts.corrected_chains}
    return sum(s.seed for s in config.data.sources.values()) * sum(chains[kind] for kind in config.sft.traces)


def sft_batch(config: Config) -> int:
    """Traces an update of SFT, over all processes."""
    sft, launch = config.sft, config.launch
    return sft.batch_size * sft.gradient_accumulation * launch.sft_processes * launch.machines


def sft_updates(config: Config) -> int:
    """Updates of SFT."""
    if config.sft.max_steps > 0:
        return config.sft.max_steps
    return round(traces(config) * config.sft.epochs / sft_batch(config))


def rl_updates(config: Config) -> int:
    """Updates of RL."""
    wanted = sum(source.rl for source in config.data.sources.values())
    return config.rl.max_steps if config.rl.max_steps > 0 else round(wanted * config.rl.epochs / config.rl.global_batch)


def _training_judges(config: Config, rollouts: int) -> Line:
    """One call a judge and rollout, for the judges that the method's signals and monitored rewards ask."""
    asked = [name for name in JUDGED if name in {*config.rl.signals, *config.rl.monitor}]
    calls = len(asked) * rollouts
    return Line(
        "judge-rl",
        calls,
        calls * _reply(config.judges.training),
        f"at most {len(asked)} judges ({', '.join(asked) or 'none'}) x rollouts; correct ones only are judged",
        "judge",
        config.judges.training,
    )


def _reply(judge: Judge) -> int:
    """Tokens of one reply at most; the oracle and recorded verdicts write none."""
    return judge.max_completion_tokens if judge.backend == "openai" else 0


def _evaluation(config: Config) -> list[Line]:
    """Answers of every model that `make eval` evaluates, and the judges' verdicts on them."""
    settings = config.eval
    per_benchmark = config.world.bench_per_benchmark if config.world is not None else 0
    questions = sum((settings.counts or {}).get(name, per_benchmark) for name in settings.benchmarks)
    answers = questions * len(settings.models) * (1 + settings.sampled_rollouts)
    verdicts = len(JUDGED) * answers
    return [
        Line(
            "eval",
            answers,
            answers * settings.max_new_tokens,
            f"at most {questions:,} questions x {len(settings.models)} models x {1 + settings.sampled_rollouts} answers",
            "model",
        ),
        Line(
            "judge-eval",
            verdicts,
            verdicts * _reply(config.judges.evaluation),
            f"at most {len(JUDGED)} judges x answers; direct answers are not judged",
            "judge",
            config.judges.evaluation,
        ),
    ]


def likely_tokens(line: Line, config: Config, assume: Assumptions) -> int:
    """Tokens that a line is likely to write: as long as assumed, never past the limit."""
    if not line.calls or not line.sampler:
        return 0
    limit = line.tokens / line.calls
    share = {"mcts": "search.expanded", "data": "difficulty.read"}.get(line.stage)
    calls = line.calls * (assume[share] if share else 1.0)
    # a tree's steps are a line each, its rollouts about half a reasoning
    length = assume["lengths.judge_reply" if line.judge else "lengths.response"] / (2 if line.stage == "mcts" else 1)
    return round(calls * min(limit, length))


def training_hours(config: Config, shape: Shape, assume: Assumptions) -> list[str]:
    """GPU hours of the updates of SFT and RL, in words."""
    flops = assume["gpu.tflops"] * 1e12 * assume["gpu.utilisation"]
    length = round(assume["lengths.prompt"] + assume["lengths.response"])
    out = []
    for stage in STAGES:
        if stage == "sft":
            seen, passes, why = sft_updates(config) * sft_batch(config), 8, "forward 2, again 2, backward 4"
        else:
            seen = rl_updates(config) * config.rl.global_batch * config.rl.group_size
            passes, why = 12, "old and reference log-probabilities 2 + 2, update 8"
        hours = seen * length * passes * shape.parameters / flops / 3600
        gpus = config.launch.machines * getattr(config.launch, f"{stage}_processes")
        out.append(
            f"{stage:10} {hours:>10.2f} GPU hours, {hours / gpus:.2f} on {gpus}: {seen:,} sequences x {length:,} tokens x "
            f"{passes} FLOP x {shape.parameters:,} parameters ({why}) / ({assume['gpu.tflops']:g} TFLOP/s x {assume['gpu.utilisation']:g})"
        )
    return out


def trained_parameters(config: Config, stage: Literal["sft", "rl"], shape: Shape) -> int:
    """Parameters that a stage trains: the adapters alone with LoRA."""
    section: Any = getattr(config, stage)
    if section.lora is not None:
        return shape.adapters(section.lora)
    return shape.trainable(freeze_vision=section.freeze_vision, freeze_projector=section.freeze_projector)


def memory(config: Config, stage: Literal["sft", "rl"], shape: Shape, length: int, reply: int) -> list[Part]:
    """What one GPU holds in SFT or RL, at sequences of `length` tokens (`reply` of them with logits)."""
    section: Any = getattr(config, stage)
    trainable = trained_parameters(config, stage, shape)
    gpus = config.launch.machines * getattr(config.launch, f"{stage}_processes")
    half = section.precision == "bf16"
    rows = config.sft.batch_size if stage == "sft" else config.rl.micro_batch
    states = footprint.states(
        shape,
        trainable,
        gpus,
        sharding(section.deepspeed),
        half=half,
        adapters=section.lora is not None,
        reference=stage == "rl" and config.rl.kl_coef > 0 and section.lora is None,
    )
    checkpointing = stage == "sft" or config.rl.gradient_checkpointing
    return [
        *states,
        *footprint.activations(shape, rows * length, rows * reply, half=half, checkpointing=checkpointing),
    ]


def sharding(settings: str | None) -> footprint.Sharding:
    """How a DeepSpeed file shards; "none" without one."""
    if settings is None:
        return "none"
    stage = json.loads(Path(settings).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    names: dict[int, footprint.Sharding] = {3: "zero3", 2: "zero2"}
    return names.get(stage, "none")


def cache(config: Config, shape: Shape, assume: Assumptions) -> str:
    """The KV cache of a generation of rollouts, and how much of it a GPU of the rollout server holds."""
    rl, serving = config.rl, config.serve.rollouts
    number = BYTES[rl.precision]
    each = footprint.cache_bytes(shape, number)
    rollouts = rl.rollout_batch * rl.group_size
    most = rollouts * (rl.max_prompt_length + rl.max_response_length)
    likely = rollouts * round(assume["lengths.prompt"] + assume["lengths.response"])
    free = assume["gpu.memory_gb"] * GB * serving.memory_share - number * shape.parameters / serving.tensor_parallel
    return (
        f"KV cache   {each:,} bytes a token (2 x {shape.layers} layers x {shape.kv_width} wide x {number}); a generation of "
        f"{rollouts} rollouts: at most {most * each / GB:,.0f} GB, likely {likely * each / GB:,.1f} GB; a GPU of "
        f"{assume['gpu.memory_gb']:g} GB has about {max(free, 0) / GB:,.0f} GB for it beside the weights, vLLM queues the rest"
    )


def parameters(config: Config) -> int:
    """Parameters of `models.base`, counted on the model built without weights."""
    return footprint.shape_of(config.models.base).parameters


def judge_cost(line: Line, assume: Assumptions, price: float | None) -> str:
    """What a line of judging costs, in words."""
    assert line.judge is not None
    judge = line.judge
    if judge.backend != "openai" or not line.calls:
        return (
            f"{line.stage:10} nothing: {'no calls' if not line.calls else f'the backend {judge.backend} asks nobody'}"
        )
    reads, writes = round(line.calls * assume["lengths.judge_prompt"]), line.tokens
    counted = f"{reads:,} tokens read, at most {writes:,} written"
    prices = (judge.prompt_price, judge.completion_price) if price is None else (0.0, price)
    money = Budget(*prices).price(reads, writes)
    if money is None:
        role = "training" if line.stage == "judge-rl" else "evaluation"
        return f"{line.stage:10} {judge.model}: {counted}; set judges.{role}.prompt_price and completion_price for its cost"
    return f"{line.stage:10} {judge.model}: {counted}; at most {money:,.0f} (prices a million: {prices[0]:g}, {prices[1]:g})"


def checkpoints(config: Config, stage: Literal["sft", "rl"], shape: Shape) -> Part:
    """What a trained stage has on the disk at most: one checkpoint is written before the oldest goes."""
    section: Any = getattr(config, stage)
    kept = SFT_KEPT if stage == "sft" else config.rl.keep_checkpoints
    number = math.ceil(rl_updates(config) / config.rl.save_steps) if kept is None else kept + 1
    trained, adapters = trained_parameters(config, stage, shape), section.lora is not None
    whole = 2 if stage == "sft" else 1  # the best state and a new best one, or the last one
    return footprint.checkpoints(shape, trained, number, whole, half=section.precision == "bf16", adapters=adapters)


def disk(config: Config, shape: Shape, tokens: int, assume: Assumptions) -> list[str]:
    """Disk of SFT, of RL with one method, and of what sampling writes, in words."""
    parts = [(stage, checkpoints(config, stage, shape)) for stage in STAGES]
    trained = [f"{stage:10} about {part.size / GB:,.1f} GB: {part.formula}" for stage, part in parts]
    each = assume["disk.bytes_a_token"]
    how = f"{tokens:,} tokens x {each:g} bytes (trees, rollouts, answers, verdicts)"
    return [*trained, f"texts      about {tokens * each / GB:,.2f} GB: {how}"]


MEASURED = {  # counts of a stage's manifest that stand for its calls
    "data": ("rollouts/scored", "data.difficulty_rollouts"),
    "mcts": ("completions", ""),
}


def measured(config: Config, root: str | Path) -> list[str]:
    """What stages of this preset have taken so far, beside what was planned."""
    planned: Mapping[str, Line] = {line.stage: line for line in demand(config)}
    out = []
    for stage in ("data", "mcts", "sft", f"rl-{config.method}"):
        path = runs.folder(config, stage, root) / "manifest.json"
        if not path.is_file():
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        text = f"{stage:10} {manifest['seconds'] / 3600:.2f} hours"
        if stage in MEASURED:
            name, times = MEASURED[stage]
            calls = manifest["counts"].get(name, 0) * (config.data.difficulty_rollouts if times else 1)
            text += (
                f", {calls:,} continuations ({calls / planned[stage].calls:.0%} of the plan's {planned[stage].calls:,})"
            )
        out.append(text)
    return out


def report(config: Config, assume: Assumptions, root: str | Path, price: float | None = None) -> list[str]:
    """The whole plan, line by line."""
    shape = footprint.shape_of(config.models.base)
    lines = demand(config)
    out = [f"plan for preset {config.preset}, method {config.method}"]
    if config.world is not None:
        out.append("the miniature runs on a CPU: hours below are what a GPU of the paper's would take")
    mcts = config.mcts
    steps = mcts.simulations * mcts.children * (1 + mcts.rollouts)
    most = mcts.simulations * mcts.children * (mcts.expand_attempts + mcts.rollouts)
    out += [
        f"a tree asks for {steps} continuations where every proposal is taken, for {most} at most where many are rejected, "
        f"likely for {steps * assume['search.expanded']:.0f}: searches end early",
        "",
    ]
    out += [f"{'stage':10} {'calls':>12} {'tokens <=':>16} {'likely':>16} {'GPU hours':>10}  how"]
    likely = {line.stage: likely_tokens(line, config, assume) for line in lines}
    for line in lines:
        served = line.sampler and (line.judge is None or line.judge.backend == "openai")
        hours = likely[line.stage] / assume[f"sampling.{line.sampler}"] / 3600 if served else 0.0
        out.append(
            f"{line.stage:10} {line.calls:>12,} {line.tokens:>16,} {likely[line.stage]:>16,} {hours:>10.2f}  {line.formula}"
        )
    out.append("likely: calls x lengths.* up to the limit, half of it in a tree, x search.expanded, difficulty.read")
    out.append("GPU hours: likely tokens (written) / sampling.<who samples> / 3600; that rate covers reading")
    out += ["", "training (likely lengths)", *training_hours(config, shape, assume)]
    out += [
        "",
        f"memory of one GPU ({config.models.base}: {shape.parameters:,} parameters, vision {shape.encoder + shape.projector:,})",
    ]
    for stage in STAGES:
        out += _memory_lines(config, stage, shape, assume)
    out += [cache(config, shape, assume)]
    out += ["", "judges", *(judge_cost(line, assume, price) for line in lines if line.judge)]
    out += ["", "disk", *disk(config, shape, sum(likely.values()), assume)]
    if found := measured(config, root):
        out += ["", "measured in this preset's run folders", *found]
    return [*out, "", "assumptions (configs/plan.yaml; --assume key=value)", *assume.lines()]


def likely_memory(config: Config, stage: Literal["sft", "rl"], shape: Shape, assume: Assumptions) -> list[Part]:
    """What one GPU holds at sequences of the assumed length."""
    most, replies = _limits(config, stage)
    reply = min(replies, round(assume["lengths.response"]))
    length = min(most, round(assume["lengths.prompt"]) + reply)
    return memory(config, stage, shape, length, length if stage == "sft" else reply)


def _limits(config: Config, stage: Literal["sft", "rl"]) -> tuple[int, int]:
    """The longest sequence, and how many of its tokens have logits."""
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

    arguments = parser("what a run will take: calls, tokens, hours, memory, cost, disk")
    arguments.add_argument(
        "--assume", nargs="*", default=[], metavar="KEY=VALUE", help="assumptions of configs/plan.yaml"
    )
    arguments.add_argument("--judge-price", type=float, metavar="PRICE", help="of a million tokens that judges write")
    run(body, arguments)


if __name__ == "__main__":
    main()
