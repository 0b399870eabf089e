"""What a run will take before it takes it: calls, tokens, GPU hours, judge cost and disk, from the configuration alone.

Every line states its formula. Upper bounds are marked "at most": searches end early, replies are shorter than their limit,
and training judges see correct rollouts only. Throughput and price are assumptions of the caller, given as options; nothing
here is a measurement. Hours are those of sampling; training updates are counted, not timed.

Command: `make plan PRESET=paper-7b` (`python -m fgrpo.plan --preset paper-7b --tokens-per-second 2000 --judge-price 1.5`).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from fgrpo.config import load
from fgrpo.schema import Config, Judge

JUDGED = ("consistency", "semantic_grounding")  # rewards that ask a judge
BYTES = {"fp32": 4, "bf16": 2}  # a weight
OPTIMISER_BYTES = 8  # Adam's two moments, float32; bf16 training keeps float32 weights beside them
CHECKPOINTS = 3  # two are kept, and one is written before the oldest goes


@dataclass(frozen=True)
class Line:
    """One stage's demand: `calls` sampled continuations, `tokens` written at most, and how both were worked out."""

    stage: str
    calls: int
    tokens: int
    formula: str
    is_judge: bool = False


def demand(config: Config) -> list[Line]:
    """Calls and tokens of the stages that sample or train, in the order of the chain."""
    data, mcts, rl = config.data, config.mcts, config.rl
    wanted = sum(source.rl for source in data.sources.values())
    seeds = sum(source.seed for source in data.sources.values())
    difficulty = wanted * data.difficulty_rollouts
    steps = seeds * mcts.simulations * mcts.children
    traces = seeds * (mcts.direct_chains + mcts.corrected_chains)
    generations = rl.max_steps if rl.max_steps > 0 else round(wanted * rl.epochs / rl.global_batch)
    rollouts = generations * rl.global_batch * rl.group_size
    updates = config.sft.max_steps
    if updates <= 0:
        updates = round(traces * config.sft.epochs / (config.sft.batch_size * config.sft.gradient_accumulation))
    return [
        Line(
            "data",
            difficulty,
            difficulty * data.difficulty_max_new_tokens,
            f"at least {wanted:,} questions x {data.difficulty_rollouts} rollouts (more are read where the filter drops many)",
        ),
        Line(
            "mcts",
            steps * (1 + mcts.rollouts),
            steps * (mcts.step_max_new_tokens + mcts.rollouts * mcts.rollout_max_new_tokens),
            f"at most {seeds:,} trees x {mcts.simulations} simulations x {mcts.children} children x (1 step + {mcts.rollouts} rollouts)",
        ),
        Line(
            "sft",
            updates,
            0,
            f"updates on one device: at most {traces:,} traces x {config.sft.epochs:g} epochs / batch",
        ),
        Line(
            "rl",
            rollouts,
            rollouts * rl.max_response_length,
            f"{generations:,} updates x {rl.global_batch} prompts x {rl.group_size} rollouts",
        ),
        _training_judges(config, rollouts),
        *_evaluation(config),
    ]


def _training_judges(config: Config, rollouts: int) -> Line:
    """One call a judge and rollout, for the judges that the method's signals and monitored rewards ask."""
    asked = [name for name in JUDGED if name in {*config.rl.signals, *config.rl.monitor}]
    calls = len(asked) * rollouts
    return Line(
        "judge-rl",
        calls,
        calls * _reply(config.judges.training),
        f"at most {len(asked)} judges ({', '.join(asked) or 'none'}) x rollouts; correct ones only are judged",
        is_judge=True,
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
        ),
        Line(
            "judge-eval",
            verdicts,
            verdicts * _reply(config.judges.evaluation),
            f"at most {len(JUDGED)} judges x answers; direct answers are not judged",
            is_judge=True,
        ),
    ]


def parameters(config: Config) -> int | None:
    """Parameters of `models.base`: from the size in its name ("…-7B-Instruct"), or from its weights; None if neither tells."""
    named = re.search(r"(\d+(?:\.\d+)?)B\b", config.models.base)
    if named:
        return round(float(named.group(1)) * 1e9)
    weights = list(Path(config.models.base).glob("*.safetensors"))
    return sum(path.stat().st_size for path in weights) // BYTES["fp32"] if weights else None


def disk(config: Config) -> str:
    """Disk of one trained stage (SFT, or RL with one method) in words."""
    count = parameters(config)
    if count is None:
        return f"disk: the size of {config.models.base} is not known here"
    weights = BYTES[config.rl.precision]
    state = OPTIMISER_BYTES + (weights if config.rl.precision == "fp32" else weights + BYTES["fp32"])
    total = count * (CHECKPOINTS * state + weights)
    return (
        f"disk: about {total / 1e9:,.1f} GB a trained stage (SFT, and RL with each method): {count / 1e9:.3g}B parameters x "
        f"({CHECKPOINTS} checkpoints x {state} bytes + {weights} bytes of final weights); the third is while one is replaced"
    )


def main() -> None:
    """Print the plan as a table."""
    from fgrpo.cli import parser, run

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        print(
            f"plan for preset {config.preset}, method {config.method} (at {args.tokens_per_second:g} tokens/s in all)"
        )
        print(f"{'stage':10} {'calls':>12} {'tokens <=':>16} {'GPU hours <=':>12}  how")
        lines = demand(config)
        for line in lines:
            hours = line.tokens / args.tokens_per_second / 3600 * args.gpus
            print(f"{line.stage:10} {line.calls:>12,} {line.tokens:>16,} {hours:>12.2f}  {line.formula}")
        judged = sum(line.tokens for line in lines if line.is_judge)
        cost = (
            "give --judge-price for their cost"
            if args.judge_price is None
            else f"{judged / 1e6 * args.judge_price:,.0f}"
        )
        print(f"judges: at most {judged:,} tokens written; cost: {cost} (what they read comes on top)")
        print(disk(config))

    arguments = parser("what a run will take: calls, tokens, hours")
    arguments.add_argument("--tokens-per-second", type=float, default=2000.0, help="all sampling engines together")
    arguments.add_argument("--gpus", type=int, default=1, help="GPUs that give this throughput together (default: 1)")
    arguments.add_argument("--judge-price", type=float, metavar="PRICE", help="of a million tokens that judges write")
    run(body, arguments)


if __name__ == "__main__":
    main()
