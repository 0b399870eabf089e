"""Score stored generations again with another judge; generates nothing (Appendix B.2: training and evaluation judge differ).

Writes `<run>/rescored/<judge>/{verdicts,scores}.jsonl` and summary.json, next to the original scores. Prints accuracy and every
reward's metric under both judges, with Cohen's kappa of their verdicts for each 0/1 reward (Appendix B.3: consistency).

Command: `python -m eval.rescore --run runs/mini/eval/fgrpo --judge oracle`; `--judge` is a role of `judges` in the
configuration (training, evaluation) or a backend, whose model and endpoints come from `--set judges.evaluation.model=…`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

import judges.base as judges
from eval import base, kept_scores, metrics, miniworld_truth, models, score, summary
from eval.extraction import evaluation_tasks
from eval.generate import held_ids
from eval.judge_validation.stats import BY_RULE, FAILED, MISSING, NOT_APPLICABLE, Agreement, Pair, compare
from eval.judge_validation.stored import QUESTIONS, questions
from eval.measures import ACCURACY, reward_measures
from eval.results import SCORING, read_records, scored_pixels
from eval.run_folder import reading, reward_code, stored_token_limit, with_known_code
from eval.scored_answers import check_failures, check_spending
from fgrpo import progress
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError, unknown
from fgrpo.inference.addresses import shown
from fgrpo.key_kinds import of_judge
from fgrpo.runs import DONE, RESCORED, held, record_outputs, require, verify, write_json
from fgrpo.schema import Config, Eval, Judge
from fgrpo.sealed import read_sealed, write_sealed
from fgrpo.types import EvalRecord, Score

LABELS = ("0", "1")  # of a 0/1 reward


def rescore(config: Config, folder: Path, judge: str) -> Path:
    """Score the generations of `folder` with `judge`; returns the folder of the new scores.

    Raises:
        UserError: no generations there, an unknown judge, too many failed judgements, or another process that does the same.
    """
    generations = require(folder / "generations.jsonl", "eval")
    chosen = _judge(config, judge)
    out = folder / RESCORED / re.sub(r"[^\w.-]+", "-", judge)
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        _score(config, folder, judge, chosen, generations, out)
    return out


def _score(config: Config, folder: Path, judge: str, chosen: Judge, generations: Path, out: Path) -> None:
    """Write the scores of `generations` by the judge `chosen` into `out`, whose lock this process holds."""
    samples = questions(require(folder / QUESTIONS, "eval"))  # the run's own questions, whatever the preset here
    spec = models.of_folder(folder, config)
    pixels = scored_pixels(require(folder / SCORING, "eval"))
    judge_set = judges.build(chosen, config.data.root, out)

    async def work() -> list[EvalRecord]:
        book = miniworld_truth.book(config.data.root)
        limit = stored_token_limit(folder)
        scorer = score.Scorer(spec, folder.name, judge_set, book, config.rl.box_normaliser, pixels, limit)
        try:
            with tqdm(desc=f"score with {judge}", unit="answer", total=len(held_ids(generations))) as bar:
                records = await score.score_file(
                    scorer, samples, generations, out, progress.moving(bar, judge_set.cost)
                )
        finally:
            await judge_set.close()
        check_spending(judge_set)
        return records

    identity = {
        "judge": of_judge(chosen.model_dump(mode="json")),
        "prompts": judge_set.prompt_hashes(evaluation_tasks()),
        "box_normaliser": config.rl.box_normaliser,
        "rewards": reward_code(),
        "boxes": {"pixels": list(pixels), **reading(spec)},
    }
    verify(out, "judge-rescore")
    (out / DONE).unlink(missing_ok=True)
    _settle_judge(out, identity)
    records = asyncio.run(work())
    check_failures(records, config)
    paired = [name for name in {r.benchmark for r in records} if base.is_paired(name)]
    result = {
        "model": folder.name,
        "judge": {**of_judge(chosen.model_dump(mode="json")), "endpoints": [*map(shown, chosen.endpoints)]},
        **summary.summarise(records, paired, config.eval),
    }
    write_json(out / "summary.json", result)
    record_outputs(out, kept_scores.FILES)


def agreements(old: list[EvalRecord], new: list[EvalRecord], settings: Eval) -> dict[str, Agreement]:
    """Agreement of two judges on the same rollouts, by reward, for each 0/1 reward on which they rated anything.

    A score that a rule decided before any judge was called (no answer, no trace) is left out: it is the same under both
    judges, and would only make them look alike.
    """
    by_reward = {}
    for measure in reward_measures():
        if not measure.report.binary:
            continue
        first, second = ({r.id: _rating(r.scores.get(measure.score)) for r in records} for records in (old, new))
        pairs = [Pair(i, first.get(i, MISSING), second.get(i, MISSING)) for i in dict.fromkeys([*first, *second])]
        both = compare(
            measure.score,
            "the run's judge",
            "this judge",
            pairs,
            LABELS,
            samples=settings.bootstrap_samples,
            confidence=settings.confidence,
        )
        if both.n:
            by_reward[measure.score] = both
    return by_reward


def _rating(score: Score | None) -> str:
    """One of `LABELS`, or why a judge gave no label."""
    if score is None:
        return MISSING
    if score.value is None:
        return FAILED if score.failed else NOT_APPLICABLE
    if "judge" not in score.detail and score.detail.get("cause") != "judge":
        return BY_RULE
    return LABELS[int(score.value)]


def _judge(config: Config, name: str) -> Judge:
    if name in ("training", "evaluation"):
        return config.judges.training if name == "training" else config.judges.evaluation
    if name not in judges.names():
        raise unknown("judge", name, [*judges.names(), "training", "evaluation"])
    return config.judges.evaluation.model_copy(update={"backend": name})


def _settle_judge(out: Path, identity: dict[str, Any]) -> None:
    """Put scores in `out` that a judge with other settings or prompts, or other rewards, gave into `eval.kept_scores`.

    Raises:
        UserError: the record of the scores' judge is damaged.
    """
    marker = out / "judge.json"
    stored: dict[str, Any] | None = None
    if marker.is_file():
        try:
            stored = read_sealed(marker)
            stored = with_known_code({**stored, "judge": of_judge(stored["judge"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{marker} is empty or damaged, so it is unknown which judge made {out / 'verdicts.jsonl'}; restore it, or "
                "delete it to judge the stored answers again"
            ) from error
    if stored != identity:
        kept_scores.put_away(out, stored)
    write_sealed(marker, identity)
    kept_scores.bring_back(out, identity)


def _print_difference(old: list[EvalRecord], new: list[EvalRecord], settings: Eval) -> None:
    for measure in (ACCURACY, *reward_measures()):
        means = [metrics.mean(measure.value_of(r) for r in records) for records in (old, new)]
        print(f"{measure.report.title:>20}: {' → '.join('–' if v is None else f'{100 * v:.1f}' for v in means)}")
    for name, both in agreements(old, new, settings).items():
        kappa = "not defined (one label only)"
        if both.kappa is not None and both.low is not None and both.high is not None:
            kappa = f"{both.kappa:.3f} [{both.low:.3f}, {both.high:.3f}]"
        print(f"Cohen's kappa of the {name} verdicts on {both.n} rollouts that both judges rated: {kappa}")


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        folder = Path(args.run)
        out = rescore(config, folder, args.judge)
        new = read_records(out / "scores.jsonl")
        if (folder / "scores.jsonl").is_file():
            old = read_records(require(folder / "scores.jsonl", "eval"))
            _print_difference(old, new, config.eval)
        print(f"scores: {out}")

    arguments = parser("score stored generations again with another judge")
    arguments.add_argument(
        "--run", required=True, metavar="FOLDER", help="an evaluated model, such as runs/mini/eval/fgrpo"
    )
    arguments.add_argument(
        "--judge", required=True, metavar="NAME", help="training, evaluation, or a backend of judges/backends"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
