"""The run folder of an evaluation: what it belongs to, and which of its scores are still valid.

Generations belong to model, prompt, decoding and benchmarks. Scores also belong to judges and rewards (`scoring.json`), so
other judges keep the generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import base, kept_scores, models
from eval.extraction import evaluation_tasks
from eval.measures import measures
from eval.results import SCORING
from fgrpo import shards
from fgrpo.code_hash import code_hashes
from fgrpo.errors import UserError
from fgrpo.identity import Identity
from fgrpo.key_kinds import of_judge
from fgrpo.pending import pending
from fgrpo.prompts import digest
from fgrpo.runs import Run, folder, verify
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed
from fgrpo.shards import Shard
from fgrpo.training import stored
from judges.base import JudgeSet

JUDGE_ROLES = ("evaluation", "extraction")


def open_run(
    config: Config,
    name: str,
    spec: models.ModelSpec,
    path: str,
    requested: Sequence[str],
    root: str | Path,
    shard: Shard | None = None,
) -> Run:
    """The run folder of one model's evaluation, or of a shard of it.

    Raises:
        UserError: as `Run.open`; the model's files are not what the stage that trained it wrote.
    """
    if spec.made_by is not None:
        verify(Path(path), spec.made_by)
        problem = stored.problem_of(Path(path)) if (Path(path) / stored.CHECKSUMS).exists() else None
        if problem is not None:
            raise UserError(f"{path} is damaged: {problem}; evaluate another checkpoint, or restore this one")
    stage = shards.stage(f"eval/{name}", shard)
    known = Identity.read(folder(config, stage, root))
    benchmarks = dict.fromkeys([*(known.growing if known is not None else ()), *requested])
    contents = {n: base.folder_of(n, config) for n in benchmarks}
    return Run.open(
        config,
        stage,
        _inputs(path),
        root,
        generation_identity(spec, path, config),
        {n: place for n, place in contents.items() if place.is_dir()},
    )


def has_all(run: Run, benchmarks: Sequence[str]) -> bool:
    """Whether the evaluation is done with all of `benchmarks`. Raises UserError as `Run.is_done`."""
    return run.is_done and not pending(run.path) and set(benchmarks) <= set(manifest(run).get("benchmarks", []))


def generation_identity(spec: models.ModelSpec, path: str, config: Config) -> dict[str, Any]:
    """What the generations depend on."""
    engine = models.engine_config(spec, config).engine
    left_out = {"leave_out": sorted(engine.leave_out)} if engine.leave_out else {}
    texts = "\0".join(models.template(spec, config, has_choices=has) for has in (True, False))
    decoding = ("temperature", "max_new_tokens", "context_length", "sampled_rollouts", "sampled_temperature")
    plain = config.model_dump(mode="json")
    model = spec.model_dump(
        mode="json", exclude={"title", "note", "engine", "temperature", "path", "pixels", *models.READING_KEYS}
    )
    if models.asked_pixels(spec, config).is_set:
        model["pixels"] = list(models.bounds(spec, path, config))
    return {
        "model": model if Path(path).is_dir() else model | {"path": path},  # a folder counts by its content
        "engine": {"kind": engine.kind, "dtype": engine.dtype, "model_name": engine.model_name, **left_out},
        "prompts": digest(texts),
        "decoding": {key: plain["eval"][key] for key in decoding} | {"temperature": models.temperature(spec, config)},
        "seed": config.seed,
    }


def stored_token_limit(folder: Path) -> int | None:
    """The most tokens of one answer in an evaluation's folder; None if it is not known (another harness made the answers)."""
    identity = Identity.read(folder)
    stored = {} if identity is None else identity.config
    limit = stored.get("model", {}).get("max_new_tokens") or stored.get("decoding", {}).get("max_new_tokens")
    return None if limit is None else int(limit)


def _inputs(path: str) -> list[Path]:
    """The folder of a checkpoint. None for a model that is served or on the hub."""
    return [Path(path)] if Path(path).is_dir() else []


def judge_identity(judge_set: JudgeSet, config: Config) -> dict[str, Any]:
    """What the verdicts depend on."""
    roles = {role: of_judge(getattr(config.judges, role).model_dump(mode="json")) for role in JUDGE_ROLES}
    return {**roles, "prompts": judge_set.prompt_hashes(evaluation_tasks()), "box_normaliser": config.rl.box_normaliser}


def reward_code() -> dict[str, str]:
    """The hash of the code of every reported reward: scores of an edited reward are computed again."""
    names = [measure.score for measure in measures() if measure.is_reward]
    return dict.fromkeys(names, "") | code_hashes("rewards", names)


def reading(spec: models.ModelSpec) -> dict[str, Any]:
    """What the reading of a model's answers depends on: keys of its file, and the code of the rules that read choice, boxes and trace."""
    keys = spec.model_dump(mode="json", include=set(models.READING_KEYS))
    of_eval, of_fgrpo = ["extract", "open_answers"], ["response", "box_forms"]
    if spec.trace == "before_answer":
        of_eval, of_fgrpo = [*of_eval, "untagged"], [*of_fgrpo, "keyed_reply"]
    return keys | {"code": code_hashes("eval", of_eval) | code_hashes("fgrpo", of_fgrpo)}


def with_known_code(identity: dict[str, Any]) -> dict[str, Any]:
    """A stored identity; names of rewards without their code, as older versions stored them, count as the present code."""
    names, code = identity.get("rewards"), reward_code()
    return {**identity, "rewards": code} if isinstance(names, list) and set(names) == set(code) else identity


def definition(config: Config) -> dict[str, Any]:
    """What a summary depends on besides the scores: intervals, measures, and the benchmarks of the average."""
    return {
        "bootstrap_samples": config.eval.bootstrap_samples,
        "confidence": config.eval.confidence,
        "limit": config.eval.limit,
        "benchmarks": list(config.eval.benchmarks),
        "metrics": {m.metric: [m.score, m.report.inverted, m.report.pooled] for m in measures()},
    }


def settle_scoring(run: Run, judge_set: JudgeSet, config: Config, model: str, spec: models.ModelSpec) -> None:
    """Put scores of other judges or rewards into `eval.kept_scores`, and bring back those of these judges; generations stay.

    A summary of another definition is computed again.
    """
    read = {"pixels": list(models.bounds(spec, model, config)), **reading(spec)}
    identity = {**judge_identity(judge_set, config), **read, "rewards": reward_code()}
    path, defined = run.path / SCORING, definition(config)
    scoring = stored_scoring(path)
    if scoring is not None:
        scoring["judges"] = with_known_code(scoring["judges"])
    is_of_others = scoring is None or scoring["judges"] != identity
    if is_of_others or (scoring is not None and scoring["summary"] != defined):
        _ = run.is_done  # a damaged file is named before it is put away or scored again
        run.reopen()
    if is_of_others:
        kept_scores.put_away(run.path, None if scoring is None else scoring["judges"])
    write_sealed(path, {"judges": identity, "summary": defined})
    kept_scores.bring_back(run.path, identity)


def stored_scoring(path: Path) -> dict[str, Any] | None:
    """What the scores depend on; None without the file.

    Raises:
        UserError: it is damaged, and there are verdicts that would be paid for again.
    """
    if not path.is_file():
        return None
    try:
        scoring = read_sealed(path)
        judges = {k: of_judge(v) if k in JUDGE_ROLES else v for k, v in scoring["judges"].items()}
        return {"judges": judges, "summary": scoring["summary"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        verdicts = path.with_name("verdicts.jsonl")
        if not verdicts.is_file() or verdicts.stat().st_size == 0:
            return None
        raise UserError(
            f"{path} is empty or damaged, so it is unknown which judge made {verdicts}; restore it, or delete it to judge the "
            "stored answers again"
        ) from error


def benchmarks_of(run: Run, requested: Sequence[str]) -> list[str]:
    """The benchmarks that an evaluation covers once `requested` are added. Of a damaged manifest, config.json gives them."""
    found = manifest(run)
    if not found and (run.path / "manifest.json").exists() and run.identity is not None:
        return list(dict.fromkeys([*requested, *run.identity.growing]))
    return list(dict.fromkeys([*found.get("benchmarks", []), *requested]))


def manifest(run: Run) -> dict[str, Any]:
    """The manifest of an evaluation; empty without one."""
    try:
        return read_sealed(run.path / "manifest.json")
    except (OSError, ValueError):  # none, or a damaged one: `Run.is_done` then finishes the stage again
        return {}
