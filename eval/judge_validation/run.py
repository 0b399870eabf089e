"""How far a judge can be trusted (Appendix B.3): agreement with another judge on stored answers, error rates where truth is known.

- `--run FOLDER`: every two judges that judged this run's answers (an evaluated model with its rescored/, or an RL run), and
  with `--judge NAME` that judge too, asked now: Cohen's kappa with a bootstrap interval and the confusion matrix, for
  consistency and answer extraction by rollout, semantic grounding by sentence. `--judge` is also shown consistent traces with swapped answers,
  which are sure negatives.
- `--world N`: N generated scenes with planted errors: the judge's true error rate by kind of error (Wilson intervals).
- `--labelled SET:PATH`: a public set whose labels people gave (judges/labelled: vsr, visual_process_bench, m_haldetect).

What failed, was not applicable or was decided by a rule is counted apart and in no figure. Results are added to
judge_validation.json and judge_validation.md in `--out` (default: the run's folder, else runs/<preset>/judge_validation), one
section a check and judge. The paper reports no kappa of its own; the checks beyond agreement are ours.

Command: `python -m eval.judge_validation.run --preset mini --world 100 --judge evaluation` (`make judge-agreement`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
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
from eval.judge_validation.stored import CONSISTENCY, GROUNDING, LABELS, Generations, Item, Stored
from fgrpo import runs, schema
from fgrpo.boxes import PixelBounds
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError, unknown
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.types import Rollout, Sample, Verdict
from judges import base
from judges.base import ConsistencyItem, ExtractionItem, GroundingItem, JudgeSet

ROLES = ("training", "evaluation", "extraction")
SCENES = 100  # of the miniature world, where nothing else is asked for
Ratings = list[tuple[str, ...]]
Section = dict[str, Any]


async def ask(judges: JudgeSet, items: Sequence[Item]) -> Ratings:
    """The labels of each item's verdicts, `FAILED` where there is none.

    Raises:
        UserError: no item at all got a verdict (says why the first did not).
    """
    texts = [item for item in items if isinstance(item, ConsistencyItem)]
    seen = [item for item in items if isinstance(item, GroundingItem)]
    meant = [item for item in items if isinstance(item, ExtractionItem)]
    said: dict[type, Iterator[tuple[Verdict, ...]]] = {
        ConsistencyItem: ((v,) for v in (await judges.consistency.judge(texts) if texts else [])),
        GroundingItem: iter(await judges.grounding.judge(seen) if seen else []),
        ExtractionItem: ((v,) for v in (await judges.extraction.judge(meant) if meant else [])),
    }
    verdicts = [next(said[type(item)]) for item in items]
    failed = [v for of_item in verdicts for v in of_item if v.failed or v.label is None]
    if failed and len(failed) == sum(map(len, verdicts)):
        raise UserError(
            f"the judge {judges.name} gave no verdict on any of {len(items)} items; the first: {failed[0].reason}"
        )
    return [tuple(FAILED if v.failed or v.label is None else v.label for v in of_item) for of_item in verdicts]


def against_truth(judge: str, items: Sequence[Labelled], ratings: Ratings, settings: schema.Eval) -> Section:
    """Agreement of a judge's ratings with the true labels, and error rates by kind, for each role that `items` have."""
    agreements: list[Agreement] = []
    errors: dict[str, list[dict[str, Any]]] = {}
    for role, kind_of_item in ((CONSISTENCY, ConsistencyItem), (GROUNDING, GroundingItem)):
        mine = [(x, r) for x, r in zip(items, ratings, strict=True) if isinstance(x.item, kind_of_item)]
        if not mine:
            continue
        pairs = [Pair(x.item.id, t, s) for x, r in mine for t, s in zip(x.truth, r, strict=True)]
        agreements.append(_compare(role, "truth", judge, pairs, settings))
        by_kind: dict[str, list[tuple[str, str]]] = {}
        for x, r in mine:
            for kind, truth, said in zip(x.kinds, x.truth, r, strict=True):
                by_kind.setdefault(kind, []).append((truth, said))
        errors[role] = [error_rate(k, given, settings.confidence).to_dict() for k, given in by_kind.items()]
    return {"agreements": [a.to_dict() for a in agreements], "errors": errors}


def _compare(role: str, first: str, second: str, pairs: Sequence[Pair], settings: schema.Eval) -> Agreement:
    samples, confidence = settings.bootstrap_samples, settings.confidence
    return compare(role, first, second, pairs, LABELS[role], samples=samples, confidence=confidence)


def check_world(config: schema.Config, judge: str, scenes: int) -> Section:
    """The judge on `scenes` generated scenes of the miniature world."""
    with TemporaryDirectory() as made:
        items = planted.world(scenes, Path(made), config.seed)
        ratings, asked = _asked(config, judge, [x.item for x in items], Path(made))
    found = against_truth(judge, items, ratings, config.eval)
    return {"title": f"{judge} on planted errors ({scenes} scenes)", **asked, **found}


def check_labelled(config: schema.Config, judge: str, name: str, path: str, limit: int | None) -> Section:
    """The judge on the labelled set `name` at `path`, on its first `limit` items (None: all)."""
    loaded = labelled.load(name, path)
    items = loaded.items[:limit]
    ratings, asked = _asked(config, judge, [x.item for x in items], config.data.root)
    found = against_truth(judge, items, ratings, config.eval)
    dropped = dict(loaded.dropped)
    if len(items) < len(loaded.items):
        dropped["beyond --limit"] = len(loaded.items) - len(items)
    return {"title": f"{judge} on {name}", **asked, **found, "dropped": dropped}


def check_run(
    config: schema.Config, folder: Path, judge: str | None, questions: Path | None, limit: int | None
) -> list[Section]:
    """Every two judges of a run; with `judge`, that one as well, and on swapped answers (both on at most `limit` answers).

    Raises:
        UserError: see `validation_stored.read`; or only one judge is there to compare.
    """
    found = stored.read(folder)
    sections = []
    for one, other in combinations(found.judged, 2):
        pair = _agreements(config, one, other)
        sections.append({"title": f"{one.judge} and {other.judge}", "agreements": pair})
    if judge is not None:
        samples = stored.questions(questions or found.questions)
        sections += _asked_now(config, found, judge, samples, found.rollouts[:limit], _pixels(folder, config))
    if not sections:
        raise UserError(
            f"one judge alone has judged {folder}; name a second one with --judge (training, evaluation, or a file of "
            "judges/backends), or run `make judge-rescore`"
        )
    return [{**section, "title": f"{section['title']}: {found.origin}"} for section in sections]


def _asked_now(
    config: schema.Config,
    found: Generations,
    judge: str,
    samples: Mapping[str, Sample],
    rollouts: Sequence[Rollout],
    pixels: PixelBounds,
) -> list[Section]:
    """`judge` on what the run's own judge was asked about these answers, and on its consistent traces with swapped answers."""
    first = found.judged[0].only({rollout.id for rollout in rollouts})
    items = stored.ask_again(first, rollouts, samples, pixels)
    if not items:
        raise UserError(
            f"no judge was asked about the first {len(rollouts)} answers of {found.origin}: nothing to ask again"
        )
    ratings, about = _asked(config, judge, items, config.data.root)
    second = stored.from_ratings(f"{judge} (now)", first, items, ratings)
    pair = _agreements(config, first, second)
    sections = [{"title": f"{first.judge} and {judge} (asked now)", **about, "agreements": pair}]
    negatives, dropped = stored.swapped(first, rollouts, samples)
    if negatives:
        ratings, about = _asked(config, judge, [x.item for x in negatives], config.data.root)
        errors = against_truth(judge, negatives, ratings, config.eval)["errors"]
        title = f"{judge} on swapped answers of consistent traces"
        sections.append({"title": title, **about, "errors": errors, "dropped": dropped})
    return sections


def _agreements(config: schema.Config, one: Stored, other: Stored) -> list[dict[str, Any]]:
    settings = config.eval
    pair = stored.agreements(one, other, settings.bootstrap_samples, settings.confidence)
    return [agreement.to_dict() for agreement in pair]


def _pixels(folder: Path, config: schema.Config) -> PixelBounds:
    """The bounds of the policy's processor: as the evaluation noted them, else the base model's."""
    noted = folder / "scoring.json"
    if noted.is_file():
        try:
            least, most, factor = json.loads(noted.read_text(encoding="utf-8"))["judges"]["pixels"]
            return PixelBounds(int(least), int(most), int(factor))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{noted} is broken ({error!r}); run `make eval` for this model again") from error
    return pixel_bounds(config.models.base)


def _asked(config: schema.Config, judge: str, items: Sequence[Item], data_root: str | Path) -> tuple[Ratings, Section]:
    """Ratings by a freshly made judge, and what there is to say of it (model, prompts, meter)."""
    chosen = judge_config(config, judge)

    async def work() -> tuple[Ratings, Section]:
        judges = base.build(chosen, data_root)
        try:
            ratings = await ask(judges, items)
        finally:
            await judges.close()
        about = {"model": judges.name, "prompts": dict(judges.prompt_hashes), "judging": judges.meter.to_dict()}
        return ratings, {"judge": judge, **about}

    return asyncio.run(work())


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
    """The sections that the command line asks for, and where they go."""
    judge = args.judge or "evaluation"
    sections: list[Section] = []
    if args.run is not None:
        sections += check_run(config, Path(args.run), args.judge, args.questions and Path(args.questions), args.limit)
    for given in args.labelled:
        name, colon, path = given.partition(":")
        if not colon:
            raise UserError(f"--labelled {given}: say which set and where it lies, such as vsr:/data/vsr")
        sections.append(check_labelled(config, judge, name, path, args.limit))
    if args.world is not None or not sections:
        sections.append(check_world(config, judge, args.world or SCENES))
    default = Path(args.run) if args.run is not None else runs.folder(config, NAME, args.runs)
    return sections, Path(args.out) if args.out else default


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        sections, out = validate(load(args.preset, args.method, args.set), args)
        out.mkdir(parents=True, exist_ok=True)
        print(add(out, sections))
        print(f"also in {out / (NAME + '.md')} and .json")

    arguments = parser("how far a judge agrees with another one, and with the truth")
    option: Callable[..., Any] = arguments.add_argument
    option(
        "--run",
        metavar="FOLDER",
        help="a run whose answers are judged: runs/<preset>/eval/<model> or runs/<preset>/rl-<method>",
    )
    option(
        "--judge",
        metavar="NAME",
        help="who is asked: training, evaluation, extraction, or a backend (default: evaluation)",
    )
    option(
        "--questions",
        metavar="FILE",
        help="the run's questions, one sample a line (default: where its stage writes them)",
    )
    option(
        "--world",
        type=int,
        metavar="N",
        help=f"scenes with planted errors (default: {SCENES} where nothing else is asked for)",
    )
    option(
        "--labelled", nargs="*", default=[], metavar="SET:PATH", help=f"labelled sets ({', '.join(labelled.names())})"
    )
    option("--limit", type=int, metavar="N", help="at most so many answers of a run, or items of a labelled set")
    option("--out", metavar="FOLDER", help="where the results go")
    run(body, arguments)


if __name__ == "__main__":
    main()
