"""Evaluate models on the benchmarks: generate, score, summarise (Appendix B.1; the rows of Tables 1 to 3).

A model's folder is runs/<preset>/eval/<model>/ with generations.jsonl, verdicts.jsonl, scores.jsonl and summary.json. The
generations stay valid while model, prompt and decoding are the same; other judges or rewards only redo the scores. More
benchmarks can be added to a finished folder. All benchmarks are read before the first token, so missing data shows at once.

Command: `python -m eval.run --preset mini --model fgrpo [--benchmarks cvb_2d,mmvp]`; without --model all of `eval.models`.
`--checkpoints` (or `--model fgrpo@100`) evaluates the checkpoints that training kept, for Figure 4.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence, Set
from pathlib import Path

from eval import base, generate, miniworld_truth, models, run_folder, score, scored_answers
from eval.downscale_images import fit
from eval.external import current
from eval.extraction import EXTRACTION_TASK
from eval.judge_validation.stored import QUESTIONS
from eval.measures import ACCURACY, reward_measures
from fgrpo import parallel, shards
from fgrpo.boxes import PixelBounds
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError, unknown
from fgrpo.files import write_jsonl
from fgrpo.inference.base import Sampler
from fgrpo.pending import COUNT, pending
from fgrpo.policy.model_files import assumed_family
from fgrpo.runs import Run
from fgrpo.schema import Config
from fgrpo.shards import Shard
from judges.base import JudgeSet, build
from judges.base import names as judge_names

OUTPUTS = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json", QUESTIONS)


def evaluate(
    config: Config,
    name: str,
    benchmarks: Sequence[str] = (),
    root: str | Path = "runs",
    sampler: Sampler | None = None,
    shard: Shard | None = None,
) -> Path:
    """Evaluate one model; returns its folder. Does nothing if all requested benchmarks are evaluated.

    Args:
        name: a file of configs/models or configs/method, or "<model>@<step>".
        benchmarks: names; () = `config.eval.every_benchmark`.
        sampler: an engine to use instead of the one that the configuration names (tests).
        shard: generate only this part of the answers, in a folder of its own, and score nothing. A run without it merges.

    Raises:
        UserError: unknown names, a missing checkpoint, missing or wrong data, an engine that serves nothing, or more failed
            judgements than `rl.max_failed_share` (finished work is kept; rerun to resume).
    """
    requested = list(benchmarks or config.eval.every_benchmark)
    check_benchmarks(requested)
    spec = models.configured(name, config)
    path = models.checkpoint(spec, config, root)
    if shard is not None:
        return _answer_part(config, name, spec, path, requested, root, sampler, shard)
    with run_folder.open_run(config, name, spec, path, requested, root) as folder:
        judge_set = evaluation_judges(config, folder.path)
        run_folder.settle_scoring(folder, judge_set, config, path, spec)
        if run_folder.has_all(folder, requested):
            print(f"{folder.path}: already evaluated")
            return folder.path
        folder.reopen()
        every = run_folder.benchmarks_of(folder, requested)
        loaded = {benchmark: base.load(benchmark, config) for benchmark in every}
        for benchmark, part in loaded.items():
            for reason, count in part.dropped.items():
                folder.counts[f"{benchmark}/left out: {reason}"] = count
            for reason, count in part.noted.items():
                folder.counts[f"{benchmark}/{reason}"] = count
        asyncio.run(_work(folder, name, spec, path, config, loaded, judge_set, sampler))
        folder.finish(
            OUTPUTS,
            benchmarks=every,
            model=name,
            judges=run_folder.judge_identity(judge_set, config),
            judging=judge_set.usage(),
        )
        return folder.path


def is_evaluated(config: Config, name: str, benchmarks: Sequence[str] = (), root: str | Path = "runs") -> bool:
    """Whether `evaluate` has nothing left to do for this model. Raises as `evaluate` does before its first request."""
    spec = models.configured(name, config)
    path = models.checkpoint(spec, config, root)
    requested = list(benchmarks or config.eval.every_benchmark)
    with run_folder.open_run(config, name, spec, path, requested, root) as folder:
        run_folder.settle_scoring(folder, evaluation_judges(config, folder.path), config, path, spec)
        return run_folder.has_all(folder, requested)


def _answer_part(
    config: Config,
    name: str,
    spec: models.ModelSpec,
    path: str,
    requested: list[str],
    root: str | Path,
    sampler: Sampler | None,
    shard: Shard,
) -> Path:
    """Generate the answers of one shard; its folder gets `generations.jsonl` alone."""
    with run_folder.open_run(config, name, spec, path, requested, root, shard) as folder:
        every = run_folder.benchmarks_of(folder, requested)
        if folder.is_done and every == run_folder.manifest(folder).get("benchmarks") and not pending(folder.path):
            return folder.path
        folder.reopen()
        samples = [s for benchmark in every for s in base.load(benchmark, config).samples]
        samples = fit(samples, spec, config, models.bounds(spec, path, config), assumed_family(path))
        todo = shard.take(generate.jobs(samples, spec, config))
        asyncio.run(_answers(folder, f"{name} {shard}", spec, path, config, todo, sampler))
        folder.finish(("generations.jsonl",), benchmarks=every, model=name)
        return folder.path


async def _answers(
    folder: Run,
    title: str,
    spec: models.ModelSpec,
    path: str,
    config: Config,
    todo: list[generate.Job],
    sampler: Sampler | None,
    refused: Set[str] = frozenset(),
) -> None:
    """Generate the answers of `todo` that the folder lacks; `refused` are ids that an earlier run was refused."""
    engine_config = models.engine_config(spec, config)
    generations = folder.path / "generations.jsonl"
    generations.touch()
    present = generate.held_ids(generations)
    if all(job.id in present for job in todo):
        folder.counts.update({f"finish/{finish}": n for finish, n in generate.settle(generations, todo).items()})
        return
    pixels = models.bounds(spec, path, config) if models.asked_pixels(spec, config).is_set else None
    engine = sampler if sampler is not None else _build_sampler(engine_config, path, pixels)
    try:
        finishes = await generate.generate(
            todo,
            engine,
            generations,
            concurrency=engine_config.engine.concurrency,
            title=title,
            refused_before=refused,
        )
    finally:
        await engine.close()
    folder.counts.update({f"finish/{finish}": n for finish, n in finishes.items()})
    if finishes["error"]:
        _report_refusals(folder, title, config, todo)


def _report_refusals(folder: Run, title: str, config: Config, todo: list[generate.Job]) -> None:
    """Print how many requests have no answer. UserError if they are more than `eval.max_refused_share`; one is always allowed."""
    generations = folder.path / "generations.jsonl"
    refused, transient = folder.counts["finish/error"], generate.transient(generations, todo)
    what = (
        f"{title}: {refused} of {len(todo)} requests have no answer ({transient} for reasons that may pass); the first: "
        f"{generate.first_refusal(generations)}"
    )
    if refused > max(1.0, config.eval.max_refused_share * len(todo)):
        raise UserError(
            f"{what}. This is more than eval.max_refused_share={config.eval.max_refused_share:g} allows; finished answers are "
            "kept: fix the engine, then rerun to resume"
        )
    if transient:
        folder.counts[COUNT] = transient
    again = "rerun to request them again" if transient else f"delete {folder.path / 'done'} and rerun to retry them"
    print(f"{what}. They are in no average ({again})")


def with_checkpoints(chosen: Sequence[str], config: Config, root: str | Path = "runs") -> list[str]:
    """`chosen`, and every checkpoint that their runs kept. UserError if they kept none."""
    checkpoints = [f"{name}{models.AT}{step}" for name in chosen for step in models.steps(name, config, root)]
    if not checkpoints:
        raise UserError(
            f"no checkpoint of {', '.join(chosen)} below {root}/{config.preset}; train with rl.keep_checkpoints=null first"
        )
    return [*chosen, *checkpoints]


def check_benchmarks(requested: Sequence[str]) -> None:
    """UserError if one of `requested` is no benchmark (names the nearest)."""
    known = base.names()
    for benchmark in requested:
        if benchmark not in known:
            raise unknown("benchmark", benchmark, known)


async def _work(
    folder: Run,
    name: str,
    spec: models.ModelSpec,
    path: str,
    config: Config,
    loaded: dict[str, base.Loaded],
    judge_set: JudgeSet,
    sampler: Sampler | None,
) -> None:
    book, pixels = miniworld_truth.book(config.data.root), models.bounds(spec, path, config)
    everything = [s for part in loaded.values() for s in part.samples]
    samples = {s.id: s for s in fit(everything, spec, config, pixels, assumed_family(path))}
    shrunk = sum("shrunk" in s.meta for s in samples.values())
    if shrunk:
        folder.counts["questions with downscaled images"] = shrunk
        print(f"{name}: downscaled the images of {shrunk} questions, which would not fit eval.context_length")
    write_jsonl(folder.path / QUESTIONS, (sample.to_dict() for sample in samples.values()))
    todo = generate.jobs(list(samples.values()), spec, config)
    generations = folder.path / "generations.jsonl"
    ids = {job.id for job in todo}
    refused = generate.forget_refusals(generations)
    shards.gather(folder, generations.name, lambda item: item["id"] in ids and item.get("finish") != "error")
    if not ids <= generate.held_ids(generations):  # a wrong key or name costs no generated token
        await judge_set.check_all()
    await _answers(folder, name, spec, path, config, todo, sampler, refused)
    paired = [benchmark for benchmark, part in loaded.items() if part.benchmark.paired]
    scorer = score.Scorer(
        spec, name, judge_set, book, config.rl.box_normaliser, pixels, models.token_limit(spec, config)
    )
    await scored_answers.score(folder, scorer, samples, paired, config, len(todo))


def _build_sampler(config: Config, path: str, pixels: PixelBounds | None) -> Sampler:
    from fgrpo import inference

    built: Sampler = inference.build(config, path, pixels)
    return built


def evaluation_judges(config: Config, run: Path | None = None) -> JudgeSet:
    """The evaluation judge, with answer extraction by the extraction judge; `run` is the folder of their spending."""
    judge_set = build(config.judges.evaluation, config.data.root, run)
    if config.judges.extraction == config.judges.evaluation:
        return judge_set
    extraction = build(config.judges.extraction, config.data.root, run)
    return judge_set.with_task(EXTRACTION_TASK, extraction)


def with_judges(overrides: Sequence[str], backend: str | None) -> list[str]:
    """Overrides of the configuration with `backend` for the evaluation judge and for answer extraction; None: as configured.

    Raises:
        UserError: no such backend (names the nearest).
    """
    if not backend:
        return list(overrides)
    if backend not in judge_names():
        raise unknown("judge backend", backend, judge_names())
    return [*overrides, f"judges.evaluation.backend={backend}", f"judges.extraction.backend={backend}"]


def judges_option(arguments: argparse.ArgumentParser) -> None:
    """Add `--judges`, see `with_judges`."""
    arguments.add_argument(
        "--judges",
        metavar="BACKEND",
        help="backend of both judges; none: no judge, so that judged metrics are not scored (default: as configured)",
    )


def headline(path: Path) -> str:
    """The averages of a finished evaluation in one line; a metric without a value is "not scored" or not applicable."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    kind = "sampled" if "sampled" in summary else "greedy"
    cells = summary[kind]["average"]
    shown = [(m.report.title, cells.get(m.metric)) for m in (ACCURACY, *reward_measures())]
    figures = (f"{title} {'–' if cell is None else format(100 * cell['value'], '.1f')}" for title, cell in shown)
    return f"{', '.join(figures)} (%, {kind} answers; intervals: `make tables`)"


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, with_judges(args.set, args.judges))
        chosen = args.model.split(",") if args.model else list(config.eval.models)
        benchmarks = tuple(args.benchmarks.split(",")) if args.benchmarks else ()
        check_benchmarks([*benchmarks, *config.eval.every_benchmark, *(config.eval.counts or ())])
        if args.checkpoints:
            chosen = with_checkpoints(chosen, config, args.runs)
        for name in chosen:  # check every name and checkpoint before the first model is loaded
            models.checkpoint(models.load(name), config, args.runs)
        shard = shards.of(args)
        if shard is None:
            current.rebuild(config, args.runs)
        if args.jobs > 1 and len(chosen) > 1:
            todo = [n for n in chosen if shard is not None or not is_evaluated(config, n, benchmarks, args.runs)]
            if len(todo) < len(chosen):
                print(f"already evaluated: {', '.join(n for n in chosen if n not in todo)}")
            if todo:
                _in_parallel(args, todo)
            return
        for name in chosen:
            path = evaluate(config, name, benchmarks, args.runs, shard=shard)
            if shard is None:
                print(f"evaluated {name}: {path}\n  {headline(path)}")
            else:
                print(f"answers of {name}: {path}; a run without --shard merges the shards")

    arguments = parser("evaluate models on the benchmarks: accuracy and faithfulness")
    arguments.add_argument(
        "--model",
        metavar="NAME[,NAME]",
        help="files of configs/models or configs/method, or a checkpoint such as fgrpo@100 (default: eval.models)",
    )
    arguments.add_argument(
        "--checkpoints",
        action="store_true",
        help="evaluate also every checkpoint that the models' runs kept (Figure 4)",
    )
    arguments.add_argument(
        "--benchmarks", metavar="NAME[,NAME]", help="benchmarks (default: eval.benchmarks and eval.extra_benchmarks)"
    )
    judges_option(arguments)
    shards.add_option(arguments)
    arguments.add_argument("--jobs", type=int, default=1, help="models to evaluate in parallel, one process each")
    run(body, arguments)


def _in_parallel(args: argparse.Namespace, chosen: Sequence[str]) -> None:
    """One process per model, `args.jobs` at a time; UserError names those that failed."""
    base_command = parallel.command("eval.run", args)
    base_command += ["--benchmarks", args.benchmarks] if args.benchmarks else []
    base_command += ["--judges", args.judges] if args.judges else []
    base_command += ["--shard", args.shard] if args.shard else []
    failed = parallel.run({name: [*base_command, "--model", name] for name in chosen}, args.jobs)
    if failed:
        raise UserError(f"evaluation of {', '.join(failed)} failed (see above); fix the cause, then rerun to resume")


if __name__ == "__main__":
    main()
