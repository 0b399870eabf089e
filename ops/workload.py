"""What the stages of a configuration need: calls, tokens and updates, each with its formula.

Counts only; `ops.gpu_hours`, `ops.storage` and `ops.judge_cost` turn them into hours, disk and money.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fgrpo.schema import Config, Judge
from judges.task import JudgeTask
from ops.assumptions import Assumptions
from rewards.base import judge_task_of, load, names, reported_names

MODELS = ("openai", "vllm")  # backends of judges that are models
SHARES = {  # of a stage's calls that are likely made
    "mcts": "search.expanded",
    "data": "difficulty.read",
    "judge-rl": "judging.correct",
    "extract": "extraction.asked",
}


@dataclass(frozen=True)
class Line:
    """The workload of one stage: sampled continuations, most tokens written, the sampler, and the formula.

    `sampler` is the key of its throughput (`sampling.<sampler>`), "" if the stage samples nothing.
    """

    stage: str
    calls: int
    tokens: int
    formula: str
    sampler: str = ""
    judge: Judge | None = None


def demand(config: Config, assume: Assumptions | None = None) -> list[Line]:
    """Calls and tokens of the stages that sample or train, in their order.

    Args:
        assume: how many sentences of a trace are judged, and candidates read; by default the values of configs/plan.yaml.
    """
    assume = assume or Assumptions()
    sentences, read = round(assume["judging.sentences"]), max(1.0, assume[SHARES["data"]])
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
            round(difficulty * read * data.difficulty_max_new_tokens),
            f"at least {wanted:,} questions x {data.difficulty_rollouts} rollouts (the tokens are those of {read:g} candidates per question)",
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
            f"updates: at most {traces(config):,} traces x {config.sft.epochs:g} epochs / {sft_batch(config)} per batch",
        ),
        *_anchor(config),
        Line(
            "rl",
            rollouts,
            rollouts * rl.max_response_length,
            f"{generations:,} updates x {rl.global_batch} prompts x {rl.group_size} rollouts",
            "rollouts",
        ),
        _training_judges(config, rollouts, sentences),
        *_evaluation(config, sentences),
    ]


def traces(config: Config) -> int:
    """The most traces that SFT trains on."""
    chains = {"direct": config.mcts.direct_chains, "corrected": config.mcts.corrected_chains}
    return sum(s.seed for s in config.data.sources.values()) * sum(chains[kind] for kind in config.sft.traces)


def sft_batch(config: Config) -> int:
    """Traces per update of SFT, over all processes."""
    sft, launch = config.sft, config.launch
    return sft.batch_size * sft.gradient_accumulation * launch.sft_processes * launch.machines


def sft_updates(config: Config) -> int:
    """Updates of SFT."""
    if config.sft.max_steps > 0:
        return config.sft.max_steps
    return round(traces(config) * config.sft.epochs / sft_batch(config))


def anchor_updates(config: Config) -> int:
    """Updates of the anchor stage, which has the batches of SFT."""
    if config.anchor.max_steps > 0:
        return config.anchor.max_steps
    return round(traces(config) * config.anchor.epochs / sft_batch(config))


def _anchor(config: Config) -> list[Line]:
    """The anchor stage, where RL begins with its model."""
    if config.rl.start != "anchor":
        return []
    how = (
        f"updates: at most {traces(config):,} traces x {config.anchor.epochs:g} epochs / {sft_batch(config)} per batch"
    )
    if config.anchor.max_steps > 0:
        how = "updates: anchor.max_steps"
    return [Line("anchor", anchor_updates(config), 0, f"{how} (make anchor, from SFT's model)")]


def rl_updates(config: Config) -> int:
    """Updates of RL."""
    wanted = sum(source.rl for source in config.data.sources.values())
    return config.rl.max_steps if config.rl.max_steps > 0 else round(wanted * config.rl.epochs / config.rl.global_batch)


def _training_judges(config: Config, rollouts: int, sentences: int) -> Line:
    """One call per judge and rollout, for the rewards of the method that need a judge."""
    asked = _judged({*config.rl.constraints, *config.rl.monitor, config.rl.task_reward})
    judge = config.judges.training
    return Line(
        "judge-rl",
        rollouts * sum(_calls(judge, task, sentences) for task in asked.values()),
        rollouts * sum(_reply(judge, task, sentences) for task in asked.values()),
        f"at most {len(asked)} judges ({', '.join(asked) or 'none'}) x rollouts, of {sentences} sentences; correct ones only are judged",
        "judge",
        judge,
    )


def _judged(chosen: Iterable[str]) -> dict[str, JudgeTask[Any]]:
    """The judge task of each of these rewards that has one, by the reward's name."""
    tasks = {name: judge_task_of(load(name)) for name in names() if name in set(chosen)}
    return {name: task for name, task in tasks.items() if task is not None}


def _reply(judge: Judge, task: JudgeTask[Any] | None, sentences: int) -> int:
    """The most tokens written about one rollout; the oracle and recorded verdicts write none."""
    if judge.backend not in MODELS:
        return 0
    calls = _calls(judge, task, sentences)
    return calls * judge.room(sentences if task is not None and task.split is not None and calls == 1 else 1)


def _calls(judge: Judge, task: JudgeTask[Any] | None, sentences: int) -> int:
    """Calls per rollout: a task with several verdicts (grounding) is one call, or one per sentence."""
    return sentences if task is not None and task.split is not None and judge.sentence_calls else 1


def _evaluation(config: Config, sentences: int) -> list[Line]:
    """Answers of every model that `make eval` evaluates, and the judges' verdicts on them."""
    settings = config.eval
    per_benchmark = config.world.bench_per_benchmark if config.world is not None else None
    sizes = {name: (settings.counts or {}).get(name, per_benchmark) for name in settings.every_benchmark}
    bounded = {
        name: settings.limit if size is None else min(size, settings.limit or size) for name, size in sizes.items()
    }
    questions = sum(size for size in bounded.values() if size is not None)
    unknown = [name for name, size in bounded.items() if size is None]
    beside = f"; not counted, since eval.counts has no size: {', '.join(unknown)}" if unknown else ""
    answers = questions * len(settings.models) * (1 + settings.sampled_rollouts)
    judge, extractor = config.judges.evaluation, config.judges.extraction
    judged = _judged(reported_names())
    return [
        Line(
            "eval",
            answers,
            answers * settings.max_new_tokens,
            f"at most {questions:,} questions x {len(settings.models)} models x {1 + settings.sampled_rollouts} answers{beside}",
            "model",
        ),
        Line(
            "judge-eval",
            answers * sum(_calls(judge, task, sentences) for task in judged.values()),
            answers * sum(_reply(judge, task, sentences) for task in judged.values()),
            f"at most {len(judged)} judges x answers, of {sentences} sentences; direct answers are not judged",
            "judge",
            judge,
        ),
        Line(
            "extract",
            answers,
            answers * _reply(extractor, None, sentences),
            "at most one call per answer; the rules read nearly all of them",
            "extractor",
            extractor,
        ),
    ]


def likely_tokens(line: Line, config: Config, assume: Assumptions) -> int:
    """Tokens that a line likely writes: of the assumed length, never past the limit."""
    if not line.calls or not line.sampler:
        return 0
    share = SHARES.get(line.stage)
    calls = line.calls * (assume[share] if share else 1.0)
    limit = line.tokens / max(calls, line.calls)
    # in a tree a step is one line, and a rollout about half a trace
    length = assume["lengths.judge_reply" if line.judge else "lengths.response"] / (2 if line.stage == "mcts" else 1)
    return round(calls * min(limit, length))
