"""How much a checkpoint's answers depend on the image: the probe rewards (docs/probes.md), on answers that `make eval` stored.

Reads runs/<preset>/eval/<model>/generations.jsonl and the model's weights; writes beside it probes.jsonl (a line per answer: its
scores by reward) and probes.json (means with percentile bootstrap intervals over questions, counts of what has no score).
`rl.probes` says how the policy is measured, as in training. Scores are of right and wrong answers, as all of evaluation's.
A killed run resumes. Command: `python -m ops.policy_probes --preset mini --model fgrpo [--kind sampled] [--limit 400]`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import base, generate, maps, models
from eval.downscale_images import fit
from eval.measured import BELONGS, LINES, SUMMARY
from eval.metrics import bootstrap_ci
from eval.miniworld_truth import book, with_true_boxes
from fgrpo import cli, config, progress, runs
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_items
from fgrpo.hashing import Hashes
from fgrpo.policy.model_files import assumed_family, is_here
from fgrpo.response import parse
from fgrpo.runs import write_json
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed
from fgrpo.types import Rollout, Sample, Score
from judges.backends import none
from rewards.base import RewardContext, RewardItem, load
from rewards.probes import MEASURED
from rl.probes.stored_answers import Answer, StoredAnswers, chunks

MONITOR = "monitor"  # in a score's detail: further numbers to average


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        measure(cfg, args.model, args.runs, kind=args.kind, limit=args.limit)

    parser = cli.parser("how much a checkpoint's answers depend on the image")
    parser.add_argument("--model", required=True, help="an evaluated model whose weights are here")
    parser.add_argument("--kind", choices=(generate.GREEDY, generate.SAMPLED), default=generate.GREEDY)
    parser.add_argument("--limit", type=cli.positive, help="at most so many answers (default: all)")
    cli.run(body, parser, argv)


def measure(
    cfg: Config,
    name: str,
    root: str | Path = "runs",
    *,
    kind: str = generate.GREEDY,
    limit: int | None = None,
    rewards: Sequence[str] = MEASURED,
) -> dict[str, Any]:
    """Measure one model's stored answers; returns what probes.json holds.

    Args:
        kind: "greedy" or "sampled" answers.
        limit: at most so many answers, spread evenly over the benchmarks; None: all.
        rewards: names of rewards that are measured on the policy.

    Raises:
        UserError: the model was not evaluated, or with other weights; it is no local checkpoint, or cannot be measured; it has no
            answer of this kind.
    """
    spec = models.configured(name, cfg)
    path = local_checkpoint(spec, cfg, root)
    folder = runs.require(runs.folder(cfg, f"eval/{name}", root) / "generations.jsonl", f"eval MODEL={name}").parent
    check_weights(name, folder, path, cfg)
    rollouts = spread(_stored(folder, kind), limit)
    if not rollouts:
        raise UserError(f"{folder} has no {kind} answer; run `make eval PRESET={cfg.preset} MODEL={name}`")
    answers = answers_of(cfg, spec, path, folder, rollouts)
    context = context_of(cfg, spec, path)
    _keep_or_clear(folder, cfg, kind, rewards)
    with Appender(folder / LINES) as out:
        todo = [answer for answer in answers if answer.item.rollout_id not in out]
        if todo:
            measured = StoredAnswers(cfg, path, rewards, context)
            bar = progress.bar(f"probe {name}", len(todo), "answer")
            for part in chunks(todo, cfg.rl.micro_batch):
                probes = measured.measure(part)
                items = [
                    dataclasses.replace(answer.item, probes=found) for answer, found in zip(part, probes, strict=True)
                ]
                columns = {reward: asyncio.run(_scores(reward, items, context)) for reward in rewards}
                for row, item in enumerate(items):
                    scores = {reward: column[row].to_dict() for reward, column in columns.items()}
                    out.add({"id": item.rollout_id, "sample_id": item.sample.id, "kind": kind, "scores": scores})
                bar.update(len(part))
            bar.close()
    wanted = {answer.item.rollout_id for answer in answers}
    lines = [line for line in read_items(folder / LINES, dict, "measured answer") if line["id"] in wanted]
    summary = {"model": name, "title": spec.title, "kind": kind, "answers": len(lines), "metrics": _summary(lines, cfg)}
    write_json(folder / SUMMARY, summary)
    _print(summary)
    return summary


def local_checkpoint(spec: models.ModelSpec, cfg: Config, root: str | Path) -> Path:
    """A model's weights: a folder, or a hub name whose files are here.

    Raises:
        UserError: they are not here; what is measured reads a policy, not an endpoint.
    """
    path = models.checkpoint(spec, cfg, root)
    if not is_here(path):
        raise UserError(
            f"the weights of the model {spec.title} ({path}) are not on this machine; probes read a policy, not an endpoint. Download "
            "them, or choose a checkpoint of your own"
        )
    return Path(path)


def check_weights(name: str, folder: Path, path: Path, cfg: Config) -> None:
    """UserError if the evaluation in `folder` was made from other weights than those in `path`."""
    evaluated = maps.made_from(folder)
    if not evaluated:  # a hub's model
        return
    hashes = Hashes(folder.parent)
    present = hashes.of_input(path)
    hashes.save()
    if present not in evaluated:
        raise UserError(
            f"{path} has other weights than those that {folder} was made from; run `make eval PRESET={cfg.preset} MODEL={name}` first"
        )


async def _scores(reward: str, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
    return await load(reward)(items, context)


def _stored(folder: Path, kind: str) -> list[Rollout]:
    """The folder's answers of one kind, without requests that were refused."""
    every = read_items(folder / "generations.jsonl", Rollout.from_dict, "answer")
    return [r for r in every if r.meta.get("kind", generate.GREEDY) == kind and r.finish != "error"]


def spread(rollouts: Sequence[Rollout], limit: int | None) -> Sequence[Rollout]:
    """At most `limit` of them, evenly spaced, so that models that answered the same questions are measured on the same ones."""
    if limit is None or limit >= len(rollouts):
        return rollouts
    return [rollouts[i * len(rollouts) // limit] for i in range(limit)]


def answers_of(
    cfg: Config, spec: models.ModelSpec, path: Path, folder: Path, rollouts: Sequence[Rollout]
) -> list[Answer]:
    """The answers with their questions and prompts, as they were generated."""
    names = dict.fromkeys(rollout.sample_id.split("/", 1)[0] for rollout in rollouts)
    bounds = models.bounds(spec, str(path), cfg)
    every = [sample for name in names for sample in base.load(name, cfg).samples]
    samples = {s.id: s for s in fit(every, spec, cfg, bounds, assumed_family(str(path)))}
    truth = book(cfg.data.root)
    texts = {has: models.template(spec, cfg, has_choices=has) for has in (True, False)}
    found = []
    for rollout in rollouts:
        sample = _question(samples, rollout, folder)
        response = parse(
            rollout.text, box_tag=spec.box_tag, frame=spec.box_frame, tags=spec.tags, choices=sample.choices
        )
        item = RewardItem(
            rollout.id, with_true_boxes(sample, truth), response, finish=rollout.finish, group=rollout.sample_id
        )
        found.append(Answer(item, models.user_text(sample, spec, texts[bool(sample.choices)]), rollout.text))
    return found


def _question(samples: Mapping[str, Sample], rollout: Rollout, folder: Path) -> Sample:
    if rollout.sample_id not in samples:
        raise UserError(
            f"{folder} has an answer to {rollout.sample_id}, which is no question of its benchmark here; evaluate the model again "
            "on these data"
        )
    return samples[rollout.sample_id]


def context_of(cfg: Config, spec: models.ModelSpec, path: Path) -> RewardContext:
    """What rewards need besides the answers of the checkpoint at `path`: right and wrong ones count, and no judge is asked."""
    bounds = models.bounds(spec, str(path), cfg)
    return RewardContext(
        none.BACKEND(cfg.judges.evaluation, Path(cfg.data.root)),
        mask="all",
        min_pixels=bounds[0],
        max_pixels=bounds[1],
        patch_factor=bounds.factor,
        box_tag=spec.box_tag,
        box_frame=spec.box_frame,
        token_limit=models.token_limit(spec, cfg),
        probing=cfg.rl.probes,
    )


def _keep_or_clear(folder: Path, cfg: Config, kind: str, rewards: Sequence[str]) -> None:
    """Keep what an earlier run has measured if it would be measured so again; else delete it."""
    belongs = {
        "generations": Hashes().of_file(folder / "generations.jsonl"),
        "probing": cfg.rl.probes.model_dump(mode="json"),
        "kind": kind,
        "rewards": list(rewards),
    }
    try:
        same = read_sealed(folder / BELONGS) == belongs
    except (OSError, ValueError):  # none, or a damaged one
        same = False
    if not same:
        (folder / LINES).unlink(missing_ok=True)
        write_sealed(folder / BELONGS, belongs)


def _summary(lines: Sequence[Mapping[str, Any]], cfg: Config) -> dict[str, Any]:
    """{reward: mean, interval and counts}; numbers in a score's `monitor` are metrics of their own, "<reward>/<key>"."""
    values: dict[str, list[tuple[str, float]]] = {}
    absent: dict[str, Counter[str]] = {}
    failed: Counter[str] = Counter()
    for line in lines:
        for reward, stored in line["scores"].items():
            score = Score.from_dict(stored)
            values.setdefault(reward, [])
            if score.value is not None:
                values[reward].append((line["sample_id"], score.value))
                for key, number in dict(score.detail.get(MONITOR, {})).items():
                    values.setdefault(f"{reward}/{key}", []).append((line["sample_id"], float(number)))
            elif score.failed:
                failed[reward] += 1
            else:
                absent.setdefault(reward, Counter())[str(score.detail.get("cause", score.reason))] += 1
    return {
        metric: {
            **_mean(found, cfg),
            "n": len(found),
            "not_applicable": dict(absent.get(metric, {})),
            "failed": failed[metric],
        }
        for metric, found in values.items()
    }


def _mean(found: Sequence[tuple[str, float]], cfg: Config) -> dict[str, float | None]:
    if not found:
        return {"mean": None, "low": None, "high": None}
    numbers = [number for _, number in found]
    ends = bootstrap_ci(
        numbers,
        samples=cfg.eval.bootstrap_samples,
        confidence=cfg.eval.confidence,
        clusters=[question for question, _ in found],
    )
    assert ends is not None
    return {"mean": sum(numbers) / len(numbers), "low": ends[0], "high": ends[1]}


def _print(summary: Mapping[str, Any]) -> None:
    print(f"{summary['title']}: {summary['answers']} {summary['kind']} answers")
    for metric, cell in summary["metrics"].items():
        left_out = ", ".join(f"{cause}: {count}" for cause, count in cell["not_applicable"].items())
        more = f"; not applicable: {left_out}" if left_out else ""
        more += f"; failed: {cell['failed']}" if cell["failed"] else ""
        shown = "–" if cell["mean"] is None else f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
        print(f"  {metric:40} {shown}, n = {cell['n']}{more}")


if __name__ == "__main__":
    main()
