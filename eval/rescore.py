"""Score stored generations again with another judge; generates nothing (Appendix B.2: training and evaluation judge differ).

Writes `<run>/rescored/<judge>/{verdicts,scores}.jsonl` and summary.json beside the original scores, and prints accuracy and
faithfulness under both judges with Cohen's kappa of their consistency verdicts (Appendix B.3).

Command: `python -m eval.rescore --run runs/mini/eval/fgrpo --judge oracle`; `--judge` is a role of `judges` in the
configuration (training, evaluation) or a backend, whose model and endpoints come from `--set judges.evaluation.model=…`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from pathlib import Path

from tqdm import tqdm

import judges.base as judges
from eval import base, metrics, miniworld_truth, models, score, summary
from eval.extraction import evaluation_tasks
from eval.judge_validation.stats import Agreement
from eval.judge_validation.stored import QUESTIONS, Stored, agreements, questions
from eval.results import SCORING, scored_pixels
from eval.run import BOXES, check_failures, check_spending
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import unknown
from fgrpo.files import read_jsonl
from fgrpo.runs import require, write_json
from fgrpo.schema import JUDGE_TRANSPORT, Config, Eval
from fgrpo.types import EvalRecord


def rescore(config: Config, folder: Path, judge: str) -> Path:
    """Score the generations of `folder` with `judge`; returns the folder of the new scores.

    Raises:
        UserError: no generations there, an unknown judge, or too many failed judgements.
    """
    generations = require(folder / "generations.jsonl", "eval")
    chosen = _judge(config, judge)
    out = folder / "rescored" / re.sub(r"[^\w.-]+", "-", judge)
    out.mkdir(parents=True, exist_ok=True)
    samples = questions(require(folder / QUESTIONS, "eval"))  # as they were asked, whatever PRESET is given here
    spec = models.load(folder.name)
    pixels = scored_pixels(require(folder / SCORING, "eval"))
    judge_set = judges.build(chosen, config.data.root, out)

    async def work() -> list[EvalRecord]:
        book = miniworld_truth.book(config.data.root)
        scorer = score.Scorer(spec, folder.name, judge_set, book, config.rl.box_normaliser, pixels)
        try:
            with tqdm(desc=f"score with {judge}", unit="answer") as bar:
                records = await score.score_file(scorer, samples, generations, out, bar.update)
        finally:
            await judge_set.close()
        check_spending(judge_set)
        return records

    identity = {
        "judge": chosen.model_dump(mode="json", exclude=set(JUDGE_TRANSPORT)),
        "prompts": judge_set.prompt_hashes(evaluation_tasks()),
        "box_normaliser": config.rl.box_normaliser,
        "boxes": {"pixels": list(pixels), **{key: getattr(spec, key) for key in BOXES}},
    }
    _forget_other_judge(out, json.dumps(identity, sort_keys=True))
    records = asyncio.run(work())
    check_failures(records, config)
    paired = [name for name in {r.benchmark for r in records} if base.benchmark(name).paired]
    result = {
        "model": folder.name,
        "judge": chosen.model_dump(mode="json"),
        **summary.summarise(records, paired, config.eval),
    }
    write_json(out / "summary.json", result)
    return out


def agreement(old: list[EvalRecord], new: list[EvalRecord], settings: Eval) -> Agreement:
    """Agreement of two judges' consistency verdicts on the same rollouts. What a rule decided before any judge was asked (no
    answer, no trace) is left out: it is the same under both, and would only make them look alike."""
    first, second = Stored("the run's judge"), Stored("this one")
    for stored, records in ((first, old), (second, new)):
        for record in records:
            stored.add(record.id, record.scores.get("consistency"), None)
    return agreements(first, second, settings.bootstrap_samples, settings.confidence)[0]


def _judge(config: Config, name: str) -> judges.schema.Judge:
    if name in ("training", "evaluation"):
        return config.judges.training if name == "training" else config.judges.evaluation
    if name not in judges.names():
        raise unknown("judge", name, [*judges.names(), "training", "evaluation"])
    return config.judges.evaluation.model_copy(update={"backend": name})


def _forget_other_judge(out: Path, identity: str) -> None:
    """Scores in `out` that a judge with other settings or other prompts gave are dropped."""
    marker = out / "judge.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") != identity:
        for name in ("scores.jsonl", "verdicts.jsonl", "summary.json"):
            (out / name).unlink(missing_ok=True)
    marker.write_text(identity, encoding="utf-8")


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        folder = Path(args.run)
        out = rescore(config, folder, args.judge)
        new = [EvalRecord.from_dict(item) for item in read_jsonl(out / "scores.jsonl")]
        old_path = folder / "scores.jsonl"
        if old_path.is_file():
            old = [EvalRecord.from_dict(item) for item in read_jsonl(old_path)]
            for name in ("accuracy", "inconsistency", "semantic"):
                pair = [metrics.mean(summary.value_of(r, name) for r in rows) for rows in (old, new)]
                print(f"{name:>14}: {' → '.join('–' if v is None else f'{100 * v:.1f}' for v in pair)}")
            found = agreement(old, new, config.eval)
            shown = "not defined (one label only)"
            if found.kappa is not None and found.low is not None and found.high is not None:
                shown = f"{found.kappa:.3f} [{found.low:.3f}, {found.high:.3f}]"
            print(
                f"Cohen's kappa of the consistency verdicts on {found.n} rollouts that both judges were asked about: {shown}"
            )
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
