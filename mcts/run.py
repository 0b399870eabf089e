"""The stage: grow one tree a seed question, many at a time over one sampler, and linearise them into SFT traces.

Reads runs/<preset>/data/seed.jsonl; writes runs/<preset>/mcts/{trees.jsonl, traces.jsonl, sft.jsonl, failed.jsonl, report.md,
viewer.html}. Trees are appended as they finish, so a kill costs at most the trees in flight; the final files are in the
order of the seed questions, and byte-equal to an undisturbed run's where the engine honours seeds.

Command: `make mcts` (`python -m mcts.run --preset mini`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from fgrpo import jsonl, prompts
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.runs import Run, folder, require
from fgrpo.sampling import build
from fgrpo.sampling.base import Sampler, SamplingError
from fgrpo.schema import Config
from fgrpo.types import Sample, Trace
from mcts import viewer
from mcts.linearize import linearize, sft_record
from mcts.search import search
from mcts.teacher import SampledTeacher
from mcts.tree import Tree

MAX_FAILED_SHARE = 0.05  # more trees than this failing means the teacher is broken, not the questions
OUTPUTS = ("trees.jsonl", "traces.jsonl", "sft.jsonl", "failed.jsonl", "report.md", "viewer.html")


def distil(config: Config, runs: str | Path = "runs", sampler: Sampler | None = None) -> Path:
    """Run the stage; `sampler` stands in for the configured engine in tests. Returns the run folder."""
    seeds = require(folder(config, "data", runs) / "seed.jsonl", "data")
    with Run.open(config, "mcts", [seeds], root=runs) as stage:
        if stage.is_done:
            print(f"{stage.path} is done")
            return stage.path
        samples = [Sample.from_dict(item) for item in jsonl.read(seeds)]
        if not samples:
            raise UserError(
                f"{seeds} holds no question; lower data.sources.*.seed or add data, and run `make data` again"
            )
        failed = asyncio.run(_grow_all(config, samples, stage, sampler))
        _finish(config, samples, failed, stage)
        return stage.path


async def _grow_all(config: Config, samples: list[Sample], stage: Run, sampler: Sampler | None) -> dict[str, str]:
    """Grow what is missing in trees.jsonl; returns the reason of each failed tree by sample id."""
    failed: dict[str, str] = {}
    with stage.append("trees.jsonl", key="sample_id") as trees:
        missing = [sample for sample in samples if sample.id not in trees]
        if not missing:
            return failed
        engine = sampler or build(config, config.models.teacher)
        template = prompts.read(config.prompts.teacher)
        totals: Counter[str] = Counter()
        slots = asyncio.Semaphore(config.mcts.trees_in_flight)
        bar = tqdm(total=len(samples), initial=len(samples) - len(missing), desc="mcts", unit="tree", smoothing=0.05)

        async def grow(sample: Sample) -> None:
            async with slots:
                text = prompts.user_text(sample, template)
                teacher = SampledTeacher(engine, sample.images, text, config.mcts, config.seed)
                try:
                    tree = await search(sample, teacher, config.mcts)
                except SamplingError as error:
                    failed[sample.id] = str(error)
                else:
                    trees.add(tree.to_dict())
                    totals.update(tree.counts)
                    totals["chains"] += len(linearize(tree, config.mcts))
            bar.set_postfix(
                calls=totals["calls"],
                tokens=totals["tokens"],
                chains=totals["chains"],
                failed=len(failed),
                refresh=False,
            )
            bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for sample in missing:
                    group.create_task(grow(sample))
        finally:
            bar.close()
            if sampler is None:
                await engine.close()
    return failed


def _finish(config: Config, samples: list[Sample], failed: dict[str, str], stage: Run) -> None:
    if len(failed) > MAX_FAILED_SHARE * len(samples):
        reason = next(iter(failed.values()))
        raise UserError(
            f"{len(failed)} of {len(samples)} trees failed, such as: {reason}; mend the teacher and run again"
        )
    by_id = {item["sample_id"]: item for item in jsonl.read(stage.path / "trees.jsonl")}
    order = [sample for sample in samples if sample.id in by_id]
    jsonl.write(stage.path / "trees.jsonl", (by_id[sample.id] for sample in order))
    jsonl.write(stage.path / "failed.jsonl", ({"id": key, "reason": why} for key, why in sorted(failed.items())))
    template = prompts.read(config.prompts.think)
    trees = [Tree.from_dict(by_id[sample.id]) for sample in order]
    traces = [linearize(tree, config.mcts) for tree in trees]
    pairs = [(sample, trace) for sample, found in zip(order, traces, strict=True) for trace in found]
    jsonl.write(stage.path / "traces.jsonl", (trace.to_dict() for _, trace in pairs))
    jsonl.write(stage.path / "sft.jsonl", (sft_record(t, s, prompts.user_text(s, template)) for s, t in pairs))
    if not pairs:
        raise UserError(
            f"no tree of {stage.path} holds a correct chain; look at trees.jsonl, the teacher never answers right"
        )
    totals = sum((tree.counts for tree in trees), Counter())
    stage.counts.update({"trees": len(trees), "failed": len(failed), "traces": len(pairs), **totals})
    _write_text(stage.path / "report.md", _report(trees, traces, totals, len(failed)))
    _write_text(stage.path / "viewer.html", viewer.page(list(zip(order, trees, traces, strict=True))))
    stage.finish(OUTPUTS, prompt_hash=prompts.digest(prompts.read(config.prompts.teacher)))


def _report(trees: list[Tree], traces: list[list[Trace]], totals: Counter[str], failed: int) -> str:
    kinds = Counter(trace.kind for found in traces for trace in found)
    accepted = sum(kinds.values())
    empty = sum(1 for found in traces if not found)
    solved = [tree.root.q for tree in trees]
    lines = [
        "# Tree search",
        "",
        f"- trees: {len(trees)} ({failed} failed, {empty} without a correct chain)",
        f"- traces: {accepted} ({kinds['direct']} direct, {kinds['corrected']} corrected)",
        f"- calls: {totals['calls']}, {totals['calls'] / max(accepted, 1):.1f} a trace; tokens: {totals['tokens']}",
        f"- mean value at the root: {sum(solved) / max(len(solved), 1):.3f}",
        "",
        "| steps the search did not take | number |",
        "|---|---|",
        *(
            f"| {key.removeprefix('dropped/')} | {totals[key]} |"
            for key in sorted(totals)
            if key.startswith("dropped/")
        ),
    ]
    return "\n".join(lines) + "\n"


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def main() -> None:
    """`python -m mcts.run`."""

    def body(args: argparse.Namespace) -> None:
        path = distil(load(args.preset, args.method, args.set), args.runs)
        print((path / "report.md").read_text(encoding="utf-8"))

    run(body, parser("reasoning traces by tree search over the teacher"))


if __name__ == "__main__":
    main()
