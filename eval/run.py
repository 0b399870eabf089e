"""Evaluate models on the benchmarks: generate, score, summarise (Appendix B.1; the rows of Tables 1 to 3).

A model's folder is runs/<preset>/eval/<model>/ with generations.jsonl, verdicts.jsonl, scores.jsonl and summary.json. The
generations stay valid while model, prompt and decoding are the same; other judges only redo the scores. More benchmarks
can be added to a finished folder. All benchmarks are read before the first token, so missing data shows at once.

Command: `python -m eval.run --preset mini --model fgrpo [--benchmarks cvb_2d,mmvp]`; without --model all of `eval.models`.
`--checkpoints` (or `--model fgrpo@100`) evaluates what training kept on its way, for Figure 4.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from eval import base, generate, miniworld_truth, models, score, summary
from eval.downscale_images import fit
from eval.extraction import EXTRACTION_TASK, evaluation_tasks
from eval.judge_validation.stored import QUESTIONS
from eval.results import SCORING
from fgrpo import parallel, progress, shards
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError, unknown
from fgrpo.files import write_jsonl
from fgrpo.inference.base import Sampler
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.prompts import digest
from fgrpo.runs import Run, write_json
from fgrpo.schema import JUDGE_TRANSPORT, Config
from fgrpo.shards import Shard
from judges.base import JudgeSet, build

BOXES = ("box_tag", "box_frame", "grounding")  # these decide how answers are scored, not what is answered
OUTPUTS = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")


def evaluate(
    config: Config,
    name: str,
    benchmarks: Sequence[str] = (),
    root: str | Path = "runs",
    sampler: Sampler | None = None,
    shard: Shard | None = None,
) -> Path:
    """Evaluate one model; returns its folder. Does nothing where everything asked for is there.

    Args:
        name: a file of configs/models.
        benchmarks: names; () = `config.eval.benchmarks`.
        sampler: an engine to use instead of the one that the configuration names (tests).
        shard: make this part of the answers only, into a folder of its own, and judge nothing; a run without it merges.

    Raises:
        UserError: unknown names, a missing checkpoint, missing or wrong data, an engine that serves nothing, or more failed
            judgements than `rl.max_failed_share` (what was done is kept; the next run goes on from there).
    """
    wanted = list(benchmarks or config.eval.benchmarks)
    check_benchmarks(wanted)
    spec = models.load(name)
    path = models.checkpoint(spec, config, root)
    if shard is not None:
        return _answer_part(config, name, spec, path, wanted, root, sampler, shard)
    with Run.open(config, f"eval/{name}", _inputs(path), root, _identity(spec, path, config)) as folder:
        judge_set = evaluation_judges(config, folder.path)
        _settle_scoring(folder, judge_set, config, path, spec)
        if _has_all(folder, wanted):
            print(f"{folder.path}: evaluated already")
            return folder.path
        wanted = list(dict.fromkeys([*_manifest(folder).get("benchmarks", []), *wanted]))
        loaded = {benchmark: base.load(benchmark, config) for benchmark in wanted}
        for benchmark, found in loaded.items():
            for reason, count in found.dropped.items():
                folder.counts[f"{benchmark}/left out: {reason}"] = count
        asyncio.run(_work(folder, name, spec, path, config, loaded, judge_set, sampler))
        folder.finish(
            OUTPUTS,
            benchmarks=wanted,
            model=name,
            judges=_judge_identity(judge_set, config),
            judging={meter.name or judge_set.name: meter.to_dict() for meter in judge_set.meters},
        )
        return folder.path


def is_evaluated(config: Config, name: str, benchmarks: Sequence[str] = (), root: str | Path = "runs") -> bool:
    """Whether `evaluate` has nothing left to do for this model. Raises as `evaluate` does before its first request."""
    spec = models.load(name)
    path = models.checkpoint(spec, config, root)
    with Run.open(config, f"eval/{name}", _inputs(path), root, _identity(spec, path, config)) as folder:
        _settle_scoring(folder, evaluation_judges(config, folder.path), config, path, spec)
        return _has_all(folder, benchmarks or config.eval.benchmarks)


def _has_all(folder: Run, benchmarks: Sequence[str]) -> bool:
    return folder.is_done and set(benchmarks) <= set(_manifest(folder).get("benchmarks", []))


def _answer_part(
    config: Config,
    name: str,
    spec: models.ModelSpec,
    path: str,
    wanted: list[str],
    root: str | Path,
    sampler: Sampler | None,
    shard: Shard,
) -> Path:
    """The answers of one shard; `generations.jsonl` is all that its folder gets."""
    stage = shards.stage(f"eval/{name}", shard)
    with Run.open(config, stage, _inputs(path), root, _identity(spec, path, config)) as folder:
        wanted = list(dict.fromkeys([*_manifest(folder).get("benchmarks", []), *wanted]))
        if folder.is_done and wanted == _manifest(folder).get("benchmarks"):
            return folder.path
        samples = [s for benchmark in wanted for s in base.load(benchmark, config).samples]
        samples = fit(samples, spec, config, pixel_bounds(path))
        todo = shard.take(generate.jobs(samples, spec, config))
        asyncio.run(_answers(folder, f"{name} {shard}", spec, path, config, todo, sampler))
        folder.finish(("generations.jsonl",), benchmarks=wanted, model=name)
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
    """Make those answers of `todo` that the folder does not hold; `refused` were refused by an earlier run."""
    engine_config = models.engine_config(spec, config)
    generations = folder.path / "generations.jsonl"
    generations.touch()
    held = generate.held_ids(generations)
    if all(job.id in held for job in todo):
        folder.counts.update({f"finish/{finish}": n for finish, n in generate.settle(generations, todo).items()})
        return
    engine = sampler if sampler is not None else _build_sampler(engine_config, path)
    try:
        slots = engine_config.engine.concurrency
        finishes = await generate.generate(
            todo, engine, generations, concurrency=slots, title=title, refused_before=refused
        )
    finally:
        await engine.close()
    folder.counts.update({f"finish/{finish}": n for finish, n in finishes.items()})
    if finishes["error"]:
        print(
            f"{title}: {finishes['error']} of {len(todo)} requests were refused and are in no average; the first: "
            f"{generate.first_refusal(generations)} (delete {folder.path / 'done'} and run again to ask for them again)"
        )


def with_checkpoints(chosen: Sequence[str], config: Config, root: str | Path = "runs") -> list[str]:
    """`chosen`, and every checkpoint that their runs kept. UserError if they kept none."""
    found = [f"{name}{models.AT}{step}" for name in chosen for step in models.steps(name, config, root)]
    if not found:
        raise UserError(
            f"no checkpoint of {', '.join(chosen)} below {root}/{config.preset}; train with rl.keep_checkpoints=null first"
        )
    return [*chosen, *found]


def check_benchmarks(wanted: Sequence[str]) -> None:
    """UserError if one of `wanted` is no benchmark (names the nearest)."""
    known = base.names()
    for benchmark in wanted:
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
    book, pixels = miniworld_truth.book(config.data.root), pixel_bounds(path)
    everything = [s for found in loaded.values() for s in found.samples]
    samples = {s.id: s for s in fit(everything, spec, config, pixels)}
    shrunk = sum("shrunk" in s.meta for s in samples.values())
    if shrunk:
        folder.counts["pictures made smaller to fit the context"] = shrunk
        print(f"{name}: the pictures of {shrunk} questions are made smaller, or they would not fit eval.context_length")
    write_jsonl(folder.path / QUESTIONS, (sample.to_dict() for sample in samples.values()))
    todo = generate.jobs(list(samples.values()), spec, config)
    generations = folder.path / "generations.jsonl"
    wanted = {job.id for job in todo}
    refused = generate.forget_refusals(generations)
    shards.gather(folder, generations.name, lambda item: item["id"] in wanted and item["finish"] != "error")
    await _answers(folder, name, spec, path, config, todo, sampler, refused)
    scorer = score.Scorer(spec, name, judge_set, book, config.rl.box_normaliser, pixels)
    try:
        with progress.bar(f"score {name}", len(todo), "answer") as bar:
            records = await score.score_file(
                scorer, samples, generations, folder.path, progress.moving(bar, judge_set.cost)
            )
    finally:
        await judge_set.close()
    check_spending(judge_set)
    check_failures(records, config)
    paired = [benchmark for benchmark, found in loaded.items() if found.benchmark.paired]
    result = {"model": name, "title": spec.title, "mode": spec.mode, **summary.summarise(records, paired, config.eval)}
    write_json(folder.path / "summary.json", result)
    for record in records:
        for metric, found_score in record.scores.items():
            folder.counts[f"{metric}/{found_score.state}"] += 1


def _build_sampler(config: Config, path: str) -> Sampler:
    from fgrpo import inference

    built: Sampler = inference.build(config, path)
    return built


def evaluation_judges(config: Config, run: Path | None = None) -> JudgeSet:
    """The evaluation judge, with answer extraction by the extraction judge; `run` is where their spending is kept."""
    judge_set = build(config.judges.evaluation, config.data.root, run)
    if config.judges.extraction == config.judges.evaluation:
        return judge_set
    extraction = build(config.judges.extraction, config.data.root, run)
    return judge_set.with_task(EXTRACTION_TASK, extraction)


def check_spending(judge_set: JudgeSet) -> None:
    """UserError if a judge was not asked everything because of its cap."""
    for meter in judge_set.meters:
        if meter.stopped is not None:
            raise UserError(
                f"{meter.stopped}; all answers and the verdicts so far are kept: raise the judge's money_cap or token_cap and "
                "run the same command again"
            )


def check_failures(records: Sequence[Any], config: Config) -> None:
    """UserError if more scores failed than `rl.max_failed_share` of those that were judged (refused requests aside)."""
    for metric in ("accuracy", "consistency", "semantic"):
        states = [r.scores[metric] for r in records if metric in r.scores and r.meta["finish"] != "error"]
        failed = [s for s in states if s.failed]
        judged = [s for s in states if s.state != "not_applicable"]
        if judged and len(failed) > config.rl.max_failed_share * len(judged):
            raise UserError(
                f"{len(failed)} of {len(judged)} judgements of {metric} failed, such as: {failed[0].reason!r}; "
                "all answers and the other scores are kept, and the same command judges the failed ones again"
            )


def _identity(spec: models.ModelSpec, path: str, config: Config) -> dict[str, Any]:
    """What the generations depend on."""
    engine = models.engine_config(spec, config).engine
    texts = "\0".join(models.template(spec, config, has_choices=has) for has in (True, False))
    decoding = ("temperature", "max_new_tokens", "context_length", "sampled_rollouts", "sampled_temperature")
    plain = config.model_dump(mode="json")
    return {
        "model": spec.model_dump(mode="json", exclude={"title", "note", "paper_row", "engine", "temperature", *BOXES})
        | {"path": path},
        "engine": {"kind": engine.kind, "dtype": engine.dtype, "model_name": engine.model_name},
        "prompts": digest(texts),
        "decoding": {key: plain["eval"][key] for key in decoding} | {"temperature": models.temperature(spec, config)},
        "seed": config.seed,
        "data": {"root": config.data.root, "world": plain["world"]},
    }


def _inputs(path: str) -> list[Path]:
    """Files whose content tells one checkpoint from another (weights, unless a stage of ours left its manifest); none for a
    model that is served or on the hub."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    if (folder.parent / "manifest.json").is_file():
        return [folder.parent / "manifest.json"]
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return weights or [p for p in (folder / "config.json", folder / "trainer_state.json") if p.is_file()]


def _judge_identity(judge_set: JudgeSet, config: Config) -> dict[str, Any]:
    roles = {
        role: getattr(config.judges, role).model_dump(mode="json", exclude=set(JUDGE_TRANSPORT))
        for role in ("evaluation", "extraction")
    }
    return {**roles, "prompts": judge_set.prompt_hashes(evaluation_tasks()), "box_normaliser": config.rl.box_normaliser}


def _settle_scoring(folder: Run, judge_set: JudgeSet, config: Config, model: str, spec: models.ModelSpec) -> None:
    """Drop scores that other judges gave, or a summary with other intervals; the generations stay."""
    boxes = {"pixels": list(pixel_bounds(model)), **{key: getattr(spec, key) for key in BOXES}}
    identity = {**_judge_identity(judge_set, config), **boxes}
    intervals = {
        "bootstrap_samples": config.eval.bootstrap_samples,
        "confidence": config.eval.confidence,
        "limit": config.eval.limit,
        "benchmarks": list(config.eval.benchmarks),
    }
    path = folder.path / SCORING
    present = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if present is None or present["judges"] != identity:
        for name in ("scores.jsonl", "verdicts.jsonl", "summary.json", "done"):
            (folder.path / name).unlink(missing_ok=True)
    elif present["summary"] != intervals:
        (folder.path / "done").unlink(missing_ok=True)
    write_json(path, {"judges": identity, "summary": intervals})


def _manifest(folder: Run) -> dict[str, Any]:
    path = folder.path / "manifest.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        chosen = args.model.split(",") if args.model else list(config.eval.models)
        benchmarks = tuple(args.benchmarks.split(",")) if args.benchmarks else ()
        check_benchmarks([*benchmarks, *config.eval.benchmarks, *(config.eval.counts or ())])
        if args.checkpoints:
            chosen = with_checkpoints(chosen, config, args.runs)
        for name in chosen:  # every name and checkpoint is checked before the first model is loaded
            models.checkpoint(models.load(name), config, args.runs)
        shard = shards.of(args)
        if args.jobs > 1 and len(chosen) > 1:
            left = [n for n in chosen if shard is not None or not is_evaluated(config, n, benchmarks, args.runs)]
            if len(left) < len(chosen):
                print(f"evaluated already: {', '.join(n for n in chosen if n not in left)}")
            if left:
                _side_by_side(args, left)
            return
        for name in chosen:
            done = evaluate(config, name, benchmarks, args.runs, shard=shard)
            print(
                f"evaluated {name}: {done}"
                if shard is None
                else f"answers of {name}: {done}; a run without --shard merges"
            )

    arguments = parser("evaluate models on the benchmarks: accuracy and faithfulness")
    arguments.add_argument(
        "--model",
        metavar="NAME[,NAME]",
        help="files of configs/models, or one's checkpoint as fgrpo@100 (default: eval.models of the preset)",
    )
    arguments.add_argument(
        "--checkpoints", action="store_true", help="also every checkpoint that the models' runs kept (for Figure 4)"
    )
    arguments.add_argument("--benchmarks", metavar="NAME[,NAME]", help="benchmarks (default: eval.benchmarks)")
    shards.add_option(arguments)
    arguments.add_argument("--jobs", type=int, default=1, help="models evaluated side by side, one process each")
    run(body, arguments)


def _side_by_side(args: argparse.Namespace, chosen: Sequence[str]) -> None:
    """One process a model, `args.jobs` at a time; UserError names those that failed."""
    base_command = [sys.executable, "-m", "eval.run"]
    base_command += ["--preset", args.preset, "--method", args.method, "--runs", args.runs]
    base_command += ["--benchmarks", args.benchmarks] if args.benchmarks else []
    base_command += ["--set", *args.set] if args.set else []
    base_command += ["--shard", args.shard] if args.shard else []
    failed = parallel.run({name: [*base_command, "--model", name] for name in chosen}, args.jobs)
    if failed:
        raise UserError(f"evaluation of {', '.join(failed)} failed (see above); the same command carries on")


if __name__ == "__main__":
    main()
