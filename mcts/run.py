"""The tree-search stage: one search tree per seed question, linearized into training traces. Appendix A.4.

Reads runs/<preset>/data/seed.jsonl. Writes runs/<preset>/mcts/: trees.jsonl, traces.jsonl, sft.jsonl (sharegpt records),
failed.jsonl (questions without a tree: reason and usage), report.md and viewer.html. Many trees share one engine. Trees are
appended as they finish, so a kill loses at most the trees in flight. At the end all files are written in the order of the seed
questions. They are byte-equal to those of an uninterrupted run where the engine honours seeds. A resumed run retries failed
trees. A finished run retries those whose endpoint was down or gave no text; to retry all, delete its `done` file. `--shard 3/8` grows every eighth tree only (fgrpo/shards.py).

Command: `make mcts` (`python -m mcts.run --preset mini [--shard 3/8]`).
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from fgrpo import inference, parallel, prompts, recorded, shards
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_ids, read_jsonl
from fgrpo.inference import budget
from fgrpo.inference.base import Sampler
from fgrpo.pending import COUNT, pending
from fgrpo.runs import Run, folder, is_done, require
from fgrpo.schema import Config
from fgrpo.shards import Shard
from fgrpo.types import Sample
from mcts.linearize import linearize
from mcts.outputs import FAILED, OUTPUTS, TREES, USAGE, Failure, budget_of, finish, write_failed
from mcts.search import TreeFailed, search
from mcts.step_rules import rules_of
from mcts.teacher import SamplerTeacher, Teacher
from mcts.tree import Settings, Tree

__all__ = ["OUTPUTS", "distil", "grow", "grow_shards", "main", "read_seeds"]

TeacherOf = Callable[[Sample], Teacher]


def distil(
    config: Config, runs: str | Path = "runs", sampler: Sampler | None = None, shard: Shard | None = None
) -> Path:
    """Run or resume the stage and return its folder.

    Args:
        sampler: the engine; by default the configured one over `models.teacher`.
        shard: grow only these trees, into a separate folder; the stage without a shard merges them.

    Raises:
        UserError: there are no seed questions, too many trees failed, or no tree holds a correct chain.
    """
    seeds = require(folder(config, "data", runs) / "seed.jsonl", "data")
    if shard is None and _is_complete(config, runs, seeds):
        return folder(config, "mcts", runs)
    with Run.open(config, shards.stage("mcts", shard), [seeds], root=runs) as stage:
        if stage.is_done and not pending(stage.path):
            return stage.path
        stage.reopen()
        samples = read_seeds(seeds)
        allowed = max(1.0, config.mcts.max_failed_share * len(samples))  # a share of all questions, in a shard too
        if shard is None:
            shards.gather(stage, TREES)
        else:
            grown_ids = shards.merged_ids(stage, folder(config, "mcts", runs), TREES)
            samples = [sample for sample in shard.take(samples) if sample.id not in grown_ids]
        recorded.check_images(seeds.parent, (path for sample in samples for path in sample.images))
        failed = asyncio.run(_grow_missing(config, stage, samples, sampler, allowed))
        if shard is None:
            finish(config, stage, samples, failed)
        else:
            write_failed(stage, failed)
            if transient := sum(failure.is_transient for failure in failed.values()):
                stage.counts[COUNT] = transient
            stage.finish((TREES, FAILED))
        return stage.path


def _is_complete(config: Config, runs: str | Path, seeds: Path) -> bool:
    """Whether the stage is done, and has no tree that another attempt may grow."""
    return is_done(config, "mcts", runs, [seeds]) and not pending(folder(config, "mcts", runs))


def read_seeds(path: Path) -> list[Sample]:
    """The seed questions of the data stage.

    Raises:
        UserError: the file is empty, or a question is malformed, duplicated, or has a gold answer outside its options.
    """
    remedy = f"Fix that line, or delete {path.parent / 'done'} and rerun `make data`"
    samples: dict[str, Sample] = {}
    for number, item in enumerate(read_jsonl(path), start=1):
        where = f"{path}, question {number} ({item.get('id', 'without id')})"
        try:
            sample = Sample.from_dict(item)
            incomplete = not isinstance(sample.id, str) or not sample.question.strip() or not sample.answer.strip()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is not a valid sample ({error!r}). {remedy}") from error
        if incomplete or (sample.choices and sample.answer not in sample.choices):
            raise UserError(f"{where} has no question, no answer, or an answer that is not among its options. {remedy}")
        if sample.id in samples:
            raise UserError(f"{where} occurs twice. {remedy}")
        samples[sample.id] = sample
    if not samples:
        raise UserError(f"{path} contains no questions. Raise data.sources.<name>.seed, then rerun `make data`")
    return list(samples.values())


async def _grow_missing(
    config: Config, stage: Run, samples: list[Sample], sampler: Sampler | None, allowed: float
) -> dict[str, Failure]:
    with stage.append(TREES) as done:
        missing = [sample for sample in samples if sample.id not in done]
        if not missing:
            return {}
        engine = sampler or inference.build(config, config.models.teacher)
        template = prompts.read_for(config.policy, config.prompts.teacher)

        def teacher_of(sample: Sample) -> Teacher:
            return SamplerTeacher(engine, sample, prompts.user_text(sample, template), config.mcts)

        try:
            return await grow(config, missing, teacher_of, done, len(samples), allowed)
        finally:
            if sampler is None:
                await engine.close()


async def grow(
    config: Config, samples: list[Sample], teacher_of: TeacherOf, done: Appender, total: int, allowed: float
) -> dict[str, Failure]:
    """Search `samples`, `mcts.trees_in_flight` at a time, and append each tree to `done`.

    The progress bar shows trees, remaining time, and this process's calls, accepted chains, tokens (prompt and completion)
    and cost.

    Args:
        total: number of trees including those already in `done`.
        allowed: number of failed trees above which the stage stops.

    Returns:
        Failures by sample id.

    Raises:
        UserError: more than `allowed` trees failed; finished trees are kept.
    """
    settings, rules = Settings.of(config.mcts, config.seed), rules_of(config)
    failed: dict[str, Failure] = {}
    totals: Counter[str] = Counter()
    meter = budget.UsageMeter(name=config.models.teacher, budget=budget_of(config))
    queue: Iterator[Sample] = iter(samples)
    with tqdm(total=total, initial=total - len(samples), desc="tree search", unit=" trees") as bar:

        async def worker() -> None:
            for sample in queue:
                tree = Tree(sample, settings, policy=config.policy, rules=rules)
                try:
                    await search(tree, teacher_of(sample))
                except TreeFailed as error:
                    failed[sample.id] = Failure(
                        str(error), {name: tree.counts[name] for name in USAGE}, error.is_transient
                    )
                    if len(failed) > allowed:
                        raise UserError(_too_many_failures(failed, total)) from error
                else:
                    done.add(tree.to_dict())
                    totals.update(chains=len(linearize(tree)))
                totals.update(calls=tree.counts["requests"])
                meter.add(tree.counts["read_tokens"], tree.counts["tokens"])
                counts = ", ".join(f"{totals[name]:,} {name}" for name in ("calls", "chains"))
                bar.set_postfix_str(f"{counts}, {format_usage(meter)}, {len(failed)} failed", refresh=False)
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.mcts.trees_in_flight, len(samples))):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first error; the other workers were cancelled because of it
    return {sample.id: failed[sample.id] for sample in samples if sample.id in failed}


def format_usage(meter: budget.UsageMeter) -> str:
    """Tokens and cost for the progress bar. In-process engines do not report prompt tokens; the cost is then unknown."""
    if meter.prompt_tokens or meter.money is None:
        return str(meter)
    return f"{meter.completion_tokens:,} completion tokens, cost unknown"


def _too_many_failures(failed: Mapping[str, Failure], total: int) -> str:
    name, first = next(iter(failed.items()))
    return (
        f"{len(failed)} of {total} trees failed, more than mcts.max_failed_share allows. First failure: {name}: "
        f"{first.reason}. Finished trees are kept. Fix the teacher or its endpoint, then rerun to resume"
    )


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config, shard = load(args.preset, args.method, args.set), shards.of(args)
        if shard is None and args.jobs > 1:
            grow_shards(config, args)
        path = distil(config, args.runs, shard=shard)
        if shard is None:
            print(f"trees, traces and SFT records are in {path}; open report.md and viewer.html there")
            if missing := pending(path):
                print(f"{missing} trees are missing because of their endpoint (failed.jsonl); rerun to grow them")
        else:
            print(f"trees are in {path}; run `python -m mcts.run` without --shard to merge them")

    arguments = parser("grow search trees over the teacher and linearize them into SFT traces")
    shards.add_option(arguments)
    arguments.add_argument(
        "--jobs", type=int, default=1, help="number of processes that share the trees, for an in-process teacher"
    )
    run(body, arguments)


def grow_shards(config: Config, args: argparse.Namespace) -> None:
    """Grow the missing trees in `args.jobs` parallel processes, one shard each. Existing trees of all shards are reused.

    Raises:
        UserError: a shard failed.
    """
    seeds = require(folder(config, "data", args.runs) / "seed.jsonl", "data")
    if _is_complete(config, args.runs, seeds):
        return
    with Run.open(config, "mcts", [seeds], root=args.runs) as stage:
        if stage.is_done and not pending(stage.path):
            return
        shards.gather(stage, TREES)
        if read_ids(stage.path / TREES) >= {sample.id for sample in read_seeds(seeds)}:
            return
    parallel.run_shards("mcts.run", args, "tree search")


if __name__ == "__main__":
    main()
