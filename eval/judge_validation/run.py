"""Validates a judge (Appendix B.3): agreement with other judges on stored answers, and error rates where the truth is known.

- `--run FOLDER`: every pair of judges of this run's answers (an evaluated model with its rescored/, or an RL run). With
  `--judge NAME`, that judge judges them too. Gives Cohen's kappa with a bootstrap interval and the confusion matrix: per
  rollout for consistency and answer extraction, per sentence for semantic grounding. `--judge` also judges consistent
  traces with swapped answers, which are certain negatives.
- `--world N`: N generated scenes with planted errors: the judge's true error rate by kind of error (Wilson intervals).
- `--labelled SET:PATH`: a public set with human labels (eval/judge_validation/labelled: vsr, visual_process_bench,
  m_haldetect).

Failed, not applicable and rule-decided ratings enter no statistic and are counted separately. Results are added to
judge_validation.json and judge_validation.md in `--out` (default: the run's folder, else runs/<preset>/judge_validation), one
section per check and judge. The paper reports no kappa of its own; the checks beyond agreement are ours.

Command: `python -m eval.judge_validation.run --preset mini --world 100 --judge evaluation` (`make judge-agreement`).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.judge_validation import planted, stored
from eval.judge_validation.labelled import base as labelled
from eval.judge_validation.labelled.base import Labelled
from eval.judge_validation.page import NAME, add
from eval.judge_validation.stats import FAILED, Agreement, Pair, compare, error_rate
from eval.judge_validation.stored import CONSISTENCY, GROUNDING, LABELS, TASKS, Generations, Item, Stored
from fgrpo import runs, schema
from fgrpo.boxes import PixelBounds
from fgrpo.cli import parser, positive, run
from fgrpo.config import load
from fgrpo.errors import UserError, unknown
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.sealed import read_sealed
from fgrpo.types import Rollout, Sample, Verdict
from judges import base
from judges.base import JudgeSet
from judges.cached_client import NO_IMAGE, UNUSABLE
from rewards.consistency import ConsistencyItem
from rewards.semantic_grounding import GroundingItem

ROLES = ("training", "evaluation", "extraction")
SCENES = 100  # of the miniature world, if the command line names no check
REPLIES = "judge_validation.replies"
OF_THE_JUDGE = (UNUSABLE, NO_IMAGE)  # failures that a rerun repeats
Ratings = list[tuple[str, ...]]
Section = dict[str, Any]


async def rate(judges: JudgeSet, items: Sequence[Item]) -> Ratings:
    """The labels of each item's verdicts, in order; `FAILED` for a verdict without a label.

    Raises:
        UserError: no item has a verdict (gives the reason of the first).
    """
    answers: dict[type, Iterator[tuple[Verdict, ...]]] = {}
    for kind, task in TASKS.items():
        of_kind = [item for item in items if isinstance(item, kind)]
        answers[kind] = iter(await judges.ask_several(task, of_kind) if of_kind else [])
    verdicts = [next(answers[type(item)]) for item in items]
    failed = [v for of_item in verdicts for v in of_item if v.failed or v.label is None]
    if failed and len(failed) == sum(map(len, verdicts)):
        raise UserError(
            f"the judge {judges.name} gave no verdict on any of {len(items)} items; the first: {failed[0].reason}"
        )
    return [tuple(FAILED if v.failed or v.label is None else v.label for v in of_item) for of_item in verdicts]


def against_truth(judge: str, items: Sequence[Labelled], ratings: Ratings, settings: schema.Eval) -> Section:
    """Agreement of a judge's ratings with the true labels, and error rates by kind, per role that occurs in `items`."""
    agreements: list[Agreement] = []
    errors: dict[str, list[dict[str, Any]]] = {}
    for role, kind_of_item in ((CONSISTENCY, ConsistencyItem), (GROUNDING, GroundingItem)):
        of_role = [(x, r) for x, r in zip(items, ratings, strict=True) if isinstance(x.item, kind_of_item)]
        if not of_role:
            continue
        pairs = [Pair(x.item.id, t, s) for x, r in of_role for t, s in zip(x.truth, r, strict=True)]
        agreements.append(_compare(role, "truth", judge, pairs, settings))
        by_kind: dict[str, list[tuple[str, str]]] = {}
        for x, r in of_role:
            for kind, truth, label in zip(x.kinds, x.truth, r, strict=True):
                by_kind.setdefault(kind, []).append((truth, label))
        errors[role] = [error_rate(k, labels, settings.confidence).to_dict() for k, labels in by_kind.items()]
    return {"agreements": [a.to_dict() for a in agreements], "errors": errors}


def _compare(role: str, first: str, second: str, pairs: Sequence[Pair], settings: schema.Eval) -> Agreement:
    samples, confidence = settings.bootstrap_samples, settings.confidence
    return compare(role, first, second, pairs, LABELS[role], samples=samples, confidence=confidence)


def check_world(config: schema.Config, judge: str, scenes: int, replies: Path | None = None) -> Section:
    """The judge on `scenes` generated scenes of the miniature world. `replies`: see `validate`."""
    with TemporaryDirectory() as folder:
        items = planted.world(scenes, Path(folder), config.seed)
        ratings, about = _rate_now(config, judge, [x.item for x in items], Path(folder), replies)
    results = against_truth(judge, items, ratings, config.eval)
    return {"title": f"{judge} on planted errors ({scenes} scenes)", **about, **results}


def check_labelled(
    config: schema.Config, judge: str, name: str, path: str, limit: int | None, replies: Path | None = None
) -> Section:
    """The judge on the first `limit` items (None: all) of the labelled set `name` at `path`."""
    loaded = labelled.load(name, path)
    items = loaded.items[:limit]
    ratings, about = _rate_now(config, judge, [x.item for x in items], config.data.root, replies)
    results = against_truth(judge, items, ratings, config.eval)
    dropped = dict(loaded.dropped)
    if len(items) < len(loaded.items):
        dropped["beyond --limit"] = len(loaded.items) - len(items)
    return {"title": f"{judge} on {name}", **about, **results, "dropped": dropped}


def check_run(
    config: schema.Config,
    folder: Path,
    judge: str | None,
    questions: Path | None,
    limit: int | None,
    replies: Path | None = None,
) -> list[Section]:
    """Every pair of judges of a run; with `judge`, that one too, and on swapped answers (both on at most `limit` answers).

    Raises:
        UserError: see `stored.read`; or there is only one judge.
    """
    generations = stored.read(folder)
    sections = []
    for one, other in combinations(generations.judged, 2):
        agreements = _agreements(config, one, other)
        sections.append({"title": f"{one.judge} and {other.judge}", "agreements": agreements})
    if judge is not None:
        samples = stored.questions(questions or generations.questions)
        rollouts = generations.rollouts[:limit]
        sections += _compare_now(config, generations, judge, samples, rollouts, _pixels(folder, config), replies)
    if not sections:
        raise UserError(
            f"one judge alone has judged {folder}; name a second one with --judge (training, evaluation, or a file of "
            "judges/backends), or run `make judge-rescore`"
        )
    return [{**section, "title": f"{section['title']}: {generations.origin}"} for section in sections]


def _compare_now(
    config: schema.Config,
    generations: Generations,
    judge: str,
    samples: Mapping[str, Sample],
    rollouts: Sequence[Rollout],
    pixels: PixelBounds,
    replies: Path | None,
) -> list[Section]:
    """`judge` on the items of the run's own judge, and on its consistent traces with swapped answers."""
    first = generations.judged[0].only({rollout.id for rollout in rollouts})
    items = stored.judged_items(first, rollouts, samples, pixels, generations.tags)
    if not items:
        raise UserError(
            f"no judge judged any of the first {len(rollouts)} answers of {generations.origin}; raise --limit or name another run"
        )
    ratings, about = _rate_now(config, judge, items, config.data.root, replies)
    second = stored.from_ratings(f"{judge} (now)", first, items, ratings)
    agreements = _agreements(config, first, second)
    sections = [{"title": f"{first.judge} and {judge} (asked now)", **about, "agreements": agreements}]
    negatives, dropped = stored.swapped(first, rollouts, samples, generations.tags)
    if negatives:
        ratings, about = _rate_now(config, judge, [x.item for x in negatives], config.data.root, replies)
        errors = against_truth(judge, negatives, ratings, config.eval)["errors"]
        title = f"{judge} on swapped answers of consistent traces"
        sections.append({"title": title, **about, "errors": errors, "dropped": dropped})
    return sections


def _agreements(config: schema.Config, one: Stored, other: Stored) -> list[dict[str, Any]]:
    settings = config.eval
    agreements = stored.agreements(one, other, settings.bootstrap_samples, settings.confidence)
    return [agreement.to_dict() for agreement in agreements]


def _pixels(folder: Path, config: schema.Config) -> PixelBounds:
    """The bounds of the policy's processor: as the evaluation record them, else the base model's."""
    record = folder / "scoring.json"
    if record.is_file():
        try:
            least, most, factor = read_sealed(record)["judges"]["pixels"]
            return PixelBounds(int(least), int(most), int(factor))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record} is broken ({error!r}); rerun `make eval` for this model") from error
    return pixel_bounds(config.models.base, config.policy.pixels)


def _rate_now(
    config: schema.Config, judge: str, items: Sequence[Item], data_root: str | Path, replies: Path | None
) -> tuple[Ratings, Section]:
    """Ratings by a newly built judge, and what identifies it (model, prompts, usage)."""
    chosen = judge_config(config, judge)
    if replies is not None:
        replies.mkdir(parents=True, exist_ok=True)

    async def work() -> tuple[Ratings, Section]:
        judges = base.build(chosen, data_root, replies)
        try:
            ratings = await rate(judges, items)
        finally:
            await judges.close()
        _check_unanswered(judges, config.rl.max_failed_share)
        about = {
            "model": judges.name,
            "prompts": judges.prompt_hashes(TASKS.values()),
            "judging": judges.meter.to_dict(),
        }
        return ratings, {"judge": judge, **about}

    return asyncio.run(work())


def _check_unanswered(judges: JudgeSet, allowed: float) -> None:
    """UserError if more than the share `allowed` of the calls got no reply: that says nothing of the judge.

    Replies that are not usable do, and are counted in the results.
    """
    meter = judges.meter
    unanswered = {kind: n for kind, n in meter.failed.items() if kind not in OF_THE_JUDGE}
    if meter.calls and sum(unanswered.values()) > allowed * meter.calls:
        raise UserError(
            f"{sum(unanswered.values())} of {meter.calls} calls of the judge {judges.name} got no reply ({', '.join(unanswered)}); "
            "nothing is written: fix its endpoint, then rerun to resume"
        )


def judge_config(config: schema.Config, name: str) -> schema.Judge:
    """The judge called `name`: a role of `judges`, or a backend, with the evaluation judge's model and limits.

    Raises:
        UserError: neither (names the nearest).
    """
    if name in ROLES:
        chosen: schema.Judge = getattr(config.judges, name)
        return chosen
    if name not in base.names():
        raise unknown("judge", name, [*base.names(), *ROLES])
    return config.judges.evaluation.model_copy(update={"backend": name})


def validate(config: schema.Config, args: argparse.Namespace) -> tuple[list[Section], Path]:
    """The sections of the checks that the command line names, and the output folder.

    Replies of a judge behind an endpoint lie in `REPLIES` there until all checks are done, so that a rerun pays for no reply
    twice. The next validation asks anew.
    """
    default = Path(args.run) if args.run is not None else runs.folder(config, NAME, args.runs)
    out = Path(args.out) if args.out else default
    replies = out / REPLIES
    judge = args.judge or "evaluation"
    sections: list[Section] = []
    if args.run is not None:
        sections += check_run(
            config, Path(args.run), args.judge, args.questions and Path(args.questions), args.limit, replies
        )
    for argument in args.labelled:
        name, colon, path = argument.partition(":")
        if not colon:
            raise UserError(f"--labelled {argument}: give the set and its path, such as vsr:/data/vsr")
        sections.append(check_labelled(config, judge, name, path, args.limit, replies))
    if args.world is not None or not sections:
        sections.append(check_world(config, judge, args.world or SCENES, replies))
    return sections, out


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        sections, out = validate(load(args.preset, args.method, args.set), args)
        out.mkdir(parents=True, exist_ok=True)
        print(add(out, sections))
        shutil.rmtree(out / REPLIES, ignore_errors=True)
        print(f"also in {out / (NAME + '.md')} and .json")

    arguments = parser("agreement of a judge with other judges and with the truth")
    option: Callable[..., Any] = arguments.add_argument
    option(
        "--run",
        metavar="FOLDER",
        help="a run with judged answers: runs/<preset>/eval/<model> or runs/<preset>/rl-<method>",
    )
    option(
        "--judge",
        metavar="NAME",
        help="the judge: training, evaluation, extraction, or a backend (default: evaluation)",
    )
    option(
        "--questions",
        metavar="FILE",
        help="the run's questions, one sample per line (default: where its stage writes them)",
    )
    option(
        "--world",
        type=int,
        metavar="N",
        help=f"scenes with planted errors (default: {SCENES} if no other check is named)",
    )
    option(
        "--labelled", nargs="*", default=[], metavar="SET:PATH", help=f"labelled sets ({', '.join(labelled.names())})"
    )
    option(
        "--limit", type=positive, metavar="N", help="maximum number of answers of a run, or of items of a labelled set"
    )
    option("--out", metavar="FOLDER", help="output folder")
    run(body, arguments)


if __name__ == "__main__":
    main()
