"""The stage: one search tree a seed question, many at a time over one engine, linearised into training traces. Appendix A.4.

Reads runs/<preset>/data/seed.jsonl. Writes runs/<preset>/mcts/: trees.jsonl, traces.jsonl, sft.jsonl (sharegpt records),
failed.jsonl (questions without a tree: the reason, and what was spent), report.md and viewer.html. Trees are appended as they
finish, so a kill costs at most the trees in flight; at the end all files are written in the order of the seed questions,
byte-equal to an undisturbed run's where the engine honours seeds. A run that goes on tries failed trees again, a finished one
once its `done` is deleted. `--shard 3/8` grows every eighth tree only (fgrpo/shards.py).

Command: `make mcts` (`python -m mcts.run --preset mini [--shard 3/8]`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fgrpo import inference, parallel, prompts, shards
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import Appender, json_line, read_ids, read_jsonl, write_jsonl
from fgrpo.inference import budget
from fgrpo.inference.base import Sampler
from fgrpo.runs import Run, folder, is_done, require
from fgrpo.schema import Config
from fgrpo.shards import Shard
from fgrpo.types import Sample, Trace
from mcts import report, store, viewer
from mcts.linearize import linearize
from mcts.search import TreeFailed, search
from mcts.teacher import SamplerTeacher, Teacher
from mcts.tree import Settings, Tree

TREES = "trees.jsonl"
OUTPUTS = (TREES, "traces.jsonl", "sft.jsonl", "failed.jsonl", "report.md", "viewer.html")
SPENT = ("requests", "completions", "tokens", "read_tokens")
TeacherOf = Callable[[Sample], Teacher]


@dataclass(frozen=True)
class Failure:
    """Why a question has no tree, and what was spent on it (`SPENT`)."""

    reason: str
    spent: Mapping[str, int]


def distil(
    config: Config, runs: str | Path = "runs", sampler: Sampler | None = None, shard: Shard | None = None
) -> Path:
    """Run the stage (or what is left of it) and return its folder.

    Args:
        sampler: the engine; by default the one that the configuration names, over `models.teacher`.
        shard: grow these trees only, into a folder of their own; the stage without it merges.

    Raises:
        UserError: there are no seed questions, too many trees failed, or no chain came out of any.
    """
    seeds = require(folder(config, "data", runs) / "seed.jsonl", "data")
    if shard is None and is_done(config, "mcts", runs, [seeds]):
        return folder(config, "mcts", runs)
    with Run.open(config, shards.stage("mcts", shard), [seeds], root=runs) as stage:
        if stage.is_done:
            return stage.path
        samples = read_seeds(seeds)
        allowed = max(1.0, config.mcts.max_failed_share * len(samples))  # of all, also in a part
        if shard is None:
            shards.gather(stage, TREES)
        else:
            grown = shards.of_whole(stage, folder(config, "mcts", runs), TREES)
            samples = [sample for sample in shard.take(samples) if sample.id not in grown]
        failed = asyncio.run(_sample_all(config, stage, samples, sampler, allowed))
        if shard is None:
            _finish(config, stage, samples, failed)
        else:
            _write_failed(stage, failed)
            stage.finish((TREES, "failed.jsonl"))
        return stage.path


def read_seeds(path: Path) -> list[Sample]:
    """The seed questions of the data stage.

    Raises:
        UserError: there are none, one is damaged, has a gold answer that is not among its options, or occurs twice (names it).
    """
    again = f"delete {path.parent / 'done'} and run `make data` again, or mend that line"
    samples: dict[str, Sample] = {}
    for number, item in enumerate(read_jsonl(path), start=1):
        where = f"{path}, question {number} ({item.get('id', 'without id')})"
        try:
            sample = Sample.from_dict(item)
            bad = not isinstance(sample.id, str) or not sample.question.strip() or not sample.answer.strip()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is no sample ({error!r}); {again}") from error
        if bad or (sample.choices and sample.answer not in sample.choices):
            raise UserError(f"{where} has no question, no answer, or one that is not among its options; {again}")
        if sample.id in samples:
            raise UserError(f"{where} occurs twice; {again}")
        samples[sample.id] = sample
    if not samples:
        raise UserError(f"{path} holds no question; raise data.sources.<name>.seed and run `make data` again")
    return list(samples.values())


async def _sample_all(
    config: Config, stage: Run, samples: list[Sample], sampler: Sampler | None, allowed: float
) -> dict[str, Failure]:
    with stage.append(TREES) as done:
        missing = [sample for sample in samples if sample.id not in done]
        if not missing:
            return {}
        engine = sampler or inference.build(config, config.models.teacher)
        template = prompts.read(config.prompts.teacher)

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
    """Search `samples`, `mcts.trees_in_flight` at a time, appending each tree to `done`; those that failed, by id.

    More than `allowed` failures end the stage. The progress bar shows trees, the time left, and this process's calls, accepted
    chains, tokens (read and written) and cost.

    Raises:
        UserError: so many failed that the stage cannot succeed any more; trees that finished are kept.
    """
    settings = Settings.of(config.mcts, config.seed)
    failed: dict[str, Failure] = {}
    totals: Counter[str] = Counter()
    spent = budget.Meter(name=config.models.teacher, budget=_budget(config))
    waiting: Iterator[Sample] = iter(samples)
    with tqdm(total=total, initial=total - len(samples), desc="tree search", unit=" trees") as bar:

        async def worker() -> None:
            for sample in waiting:
                tree = Tree(sample, settings)
                try:
                    await search(tree, teacher_of(sample))
                except TreeFailed as error:
                    failed[sample.id] = Failure(str(error), {name: tree.counts[name] for name in SPENT})
                    if len(failed) > allowed:
                        raise UserError(_too_many(failed, total)) from error
                else:
                    done.add(tree.to_dict())
                    totals.update(chains=len(linearize(tree)))
                totals.update(calls=tree.counts["requests"])
                spent.add(tree.counts["read_tokens"], tree.counts["tokens"])
                counted = ", ".join(f"{totals[name]:,} {name}" for name in ("calls", "chains"))
                bar.set_postfix_str(f"{counted}, {spending(spent)}, {len(failed)} failed", refresh=False)
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.mcts.trees_in_flight, len(samples))):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first one: the others were cancelled for it
    return {sample.id: failed[sample.id] for sample in samples if sample.id in failed}


def spending(spent: budget.Meter) -> str:
    """Tokens and cost for the bar. Engines in process do not say what they read, and then the cost is not known."""
    if spent.prompt_tokens or spent.money is None:
        return str(spent)
    return f"{spent.completion_tokens:,} tokens written, cost not known"


def _budget(config: Config) -> budget.Budget:
    return budget.Budget(config.engine.prompt_price, config.engine.completion_price)


def sft_record(sample: Sample, trace: Trace, user_text: str) -> dict[str, Any]:
    """A trace as a sharegpt record: the user's turn is the reasoning prompt, the assistant's is the trace."""
    turns = [{"role": "user", "content": user_text}, {"role": "assistant", "content": trace.text}]
    return {
        "id": trace.id,
        "sample_id": sample.id,
        "kind": trace.kind,
        "messages": turns,
        "images": list(sample.images),
    }


def _finish(config: Config, stage: Run, samples: list[Sample], failed: dict[str, Failure]) -> None:
    """Write every final file in the order of the seed questions, in one pass over the trees."""
    ids = [sample.id for sample in samples]
    template = prompts.read(config.prompts.think)
    store.put_in_order(stage.path / TREES, ids)
    tally = report.Tally()
    shown = viewer.Gallery()
    with ExitStack() as files:
        traces_out = files.enter_context(_WholeFile(stage.path / "traces.jsonl"))
        sft_out = files.enter_context(_WholeFile(stage.path / "sft.jsonl"))
        for tree in store.read(stage.path / TREES, ids):
            traces = linearize(tree)
            tally.add(tree, traces)
            shown.offer(tree, traces)
            user_text = prompts.user_text(tree.sample, template)
            for trace in traces:
                traces_out.line(trace.to_dict())
                sft_out.line(sft_record(tree.sample, trace, user_text))
    _write_failed(stage, failed)
    _write_text(
        stage.path / "report.md", report.write(tally, {name: failure.reason for name, failure in failed.items()})
    )
    _write_text(stage.path / "viewer.html", shown.page(config.preset))
    if not tally.accepted:
        raise UserError(
            f"no correct chain in {tally.counts['trees']} trees; see {stage.path / 'report.md'}, "
            "and whether the teacher follows its prompt"
        )
    stage.counts.update(tally.counts)
    lost = {name: sum(failure.spent[name] for failure in failed.values()) for name in SPENT}
    stage.counts.update({"accepted": tally.accepted, "failed_trees": len(failed)})
    stage.counts.update({f"failed_trees/{name}": n for name, n in lost.items()})
    teacher_prompt = prompts.read(config.prompts.teacher)
    c = tally.counts
    per_tree = {name: round(c[name] / c["trees"], 2) for name in ("requests", "completions", "tokens")}
    has_read = c["read_tokens"] > 0  # engines in process do not say, and then the cost is not known either
    read = {"read_tokens": round(c["read_tokens"] / c["trees"], 2) if has_read else None}
    total = (c["read_tokens"] + lost["read_tokens"], c["tokens"] + lost["tokens"])
    cost = _budget(config).price(*total) if has_read else None
    stage.finish(
        OUTPUTS,
        per_tree={**per_tree, **read},
        cost=cost,
        parts_seconds=shards.seconds(stage),
        prompt_hash={"teacher": prompts.digest(teacher_prompt), "think": prompts.digest(template)},
    )


def _write_failed(stage: Run, failed: Mapping[str, Failure]) -> None:
    lines = ({"id": name, "reason": one.reason, **one.spent} for name, one in failed.items())
    write_jsonl(stage.path / "failed.jsonl", lines)


class _WholeFile:
    """A jsonl file that is written aside, line by line, and renamed into place when all of it is there."""

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, path.with_name(path.name + ".part")

    def __enter__(self) -> _WholeFile:
        self._out = self._aside.open("w", encoding="utf-8")
        return self

    def line(self, item: dict[str, Any]) -> None:
        self._out.write(json_line(item) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        if kind is None:
            os.replace(self._aside, self._path)


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _too_many(failed: Mapping[str, Failure], total: int) -> str:
    name, first = next(iter(failed.items()))
    return (
        f"{len(failed)} of {total} trees failed, more than mcts.max_failed_share allows; the first was {name}: {first.reason}. "
        "Trees that finished are kept: mend the teacher or its endpoint and run again"
    )


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config, shard = load(args.preset, args.method, args.set), shards.of(args)
        if shard is None and args.jobs > 1:
            grow_parts(config, args)
        path = distil(config, args.runs, shard=shard)
        if shard is None:
            print(f"trees, traces and SFT records in {path}; see report.md and viewer.html there")
        else:
            print(f"trees in {path}; `python -m mcts.run` without --shard merges them")

    arguments = parser("grow search trees over the teacher and linearise them into SFT traces")
    shards.add_option(arguments)
    arguments.add_argument(
        "--jobs", type=int, default=1, help="processes that share the trees, for a teacher inside the process"
    )
    run(body, arguments)


def grow_parts(config: Config, args: argparse.Namespace) -> None:
    """Grow what is missing in `args.jobs` parts, side by side; what earlier runs and parts have grown is taken over.

    Raises:
        UserError: a part failed.
    """
    seeds = require(folder(config, "data", args.runs) / "seed.jsonl", "data")
    if is_done(config, "mcts", args.runs, [seeds]):
        return
    with Run.open(config, "mcts", [seeds], root=args.runs) as stage:
        if stage.is_done:
            return
        shards.gather(stage, TREES)
        if read_ids(stage.path / TREES) >= {sample.id for sample in read_seeds(seeds)}:
            return
    command = [sys.executable, "-m", "mcts.run", "--preset", args.preset, "--method", args.method, "--runs", args.runs]
    command += ["--set", *args.set] if args.set else []
    parts = [f"{n}/{args.jobs}" for n in range(1, args.jobs + 1)]
    failed = parallel.run({part: [*command, "--shard", part] for part in parts}, args.jobs)
    if failed:
        raise UserError(f"the part {failed[0]} of the trees failed (see above); the same command carries on")


if __name__ == "__main__":
    main()
