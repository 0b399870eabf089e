"""What a run will take before it takes it: calls, tokens, hours and judge requests a stage, from the configuration alone.

Every line states its formula. Upper bounds are marked "at most": searches end early, and judges see correct rollouts
only. Throughputs are assumptions of the caller, given as options; nothing here is a measurement.

Command: `make plan PRESET=paper-7b` (`python -m fgrpo.plan --preset paper-7b --tokens-per-second 2000`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from fgrpo.config import load
from fgrpo.schema import Config


@dataclass(frozen=True)
class Line:
    """One stage's demand: `calls` sampled continuations, `tokens` written at most, and how both were worked out."""

    stage: str
    calls: int
    tokens: int
    formula: str


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
        Line("judges", 2 * rollouts, 0, "at most one consistency and one grounding call a correct rollout"),
    ]


def main() -> None:
    """Print the plan as a table."""
    from fgrpo.cli import parser, run

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        print(
            f"plan for preset {config.preset}, method {config.method} (at {args.tokens_per_second:g} tokens/s in all)"
        )
        print(f"{'stage':8} {'calls':>12} {'tokens <=':>16} {'hours <=':>9}  how")
        for line in demand(config):
            hours = line.tokens / args.tokens_per_second / 3600
            print(f"{line.stage:8} {line.calls:>12,} {line.tokens:>16,} {hours:>9.2f}  {line.formula}")

    arguments = parser("what a run will take: calls, tokens, hours")
    arguments.add_argument("--tokens-per-second", type=float, default=2000.0, help="all sampling engines together")
    run(body, arguments)


if __name__ == "__main__":
    main()
