"""The second half of an evaluation: score the answers of a folder, enforce the limits, write the summary.

Used by every command that has answers: `eval.run` (which generated them) and `eval.external` (which read another harness').
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval import score as scoring
from eval import summary
from eval.extraction import EXTRACTION_TASK
from eval.measures import measures
from eval.models import ModelSpec
from fgrpo import progress
from fgrpo.errors import UserError
from fgrpo.runs import Run, write_json
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Sample
from judges.base import JudgeSet


async def score(
    folder: Run,
    scorer: scoring.Scorer,
    samples: Mapping[str, Sample],
    paired: Sequence[str],
    config: Config,
    total: int,
) -> list[EvalRecord]:
    """Score the folder's generations.jsonl; writes scores.jsonl, verdicts.jsonl and summary.json, and closes the judges.

    Args:
        samples: the questions by id; answers to other questions are left alone.
        paired: benchmarks whose groups are pairs.
        total: answers to score, for the progress bar.

    Raises:
        UserError: a judge reached its spending cap, or more judgements failed than `rl.max_failed_share` allows.
    """
    name, judges = scorer.model, scorer.judges
    generations = folder.path / "generations.jsonl"
    try:
        with progress.bar(f"score {name}", total, "answer") as bar:
            records = await scoring.score_file(
                scorer, samples, generations, folder.path, progress.moving(bar, judges.cost)
            )
    finally:
        await judges.close()
    check_spending(judges)
    check_failures(records, config)
    result = {
        "model": name,
        "title": scorer.spec.title,
        "mode": scorer.spec.mode,
        "judge": judges.name,
        "extractor": judges.answering(EXTRACTION_TASK),
        **defined(records, paired, config),
    }
    for key in ("boxes_other_form", "boxes_unread"):
        if counts := sum((Counter(r.meta.get(key, {})) for r in records), Counter[str]()):
            result[key] = dict(sorted(counts.items()))
            print(_said(name, scorer.spec, key, counts))
    write_json(folder.path / "summary.json", result)
    for record in records:
        for key, value in record.scores.items():
            folder.counts[f"{key}/{value.state}"] += 1
    return records


def _said(name: str, spec: ModelSpec, key: str, counts: Counter[str]) -> str:
    """What is printed about boxes in forms that a model's file does not name."""
    listed = ", ".join(f"{n} × {form}" for form, n in counts.most_common())
    if key == "boxes_unread":
        return (
            f"{name} writes boxes that are not read ({listed}): their frame is a tokenizer's own (fgrpo/box_forms.py)"
        )
    return (
        f"{name} writes boxes in other forms ({listed}) than {spec.box_tag!r}, the one of its file; they are read in its frame "
        f"{spec.box_frame!r}: if that is wrong, state box_frame, then rerun to score again"
    )


def defined(records: Sequence[EvalRecord], paired: Sequence[str], config: Config) -> dict[str, Any]:
    """The part of a summary that follows from the scores and `run_folder.definition`; arguments as of `score`."""
    return {"limit": config.eval.limit, **summary.summarise(records, paired, config.eval)}


def check_spending(judge_set: JudgeSet) -> None:
    """UserError if a judge reached its spending cap before it had judged everything."""
    for meter in judge_set.meters:
        if meter.stopped is not None:
            raise UserError(
                f"{meter.stopped}; all answers and the verdicts so far are kept: raise the judge's money_cap or token_cap, "
                "then rerun to resume"
            )


def check_failures(records: Sequence[Any], config: Config) -> None:
    """UserError if more than `rl.max_failed_share` of one measure's judgements failed. Refused requests do not count."""
    for measure in measures():
        name = measure.score
        scores = [r.scores[name] for r in records if name in r.scores and r.meta["finish"] != "error"]
        failed = [s for s in scores if s.failed]
        judged = [s for s in scores if s.state != "not_applicable"]
        if judged and len(failed) > config.rl.max_failed_share * len(judged):
            raise UserError(
                f"{len(failed)} of {len(judged)} judgements of {name} failed, such as: {failed[0].reason!r}; all answers "
                "and the other scores are kept: fix the cause (often the judge endpoint), then rerun to judge the failed ones"
            )
