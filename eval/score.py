"""Scoring of stored generations: accuracy, every reward that is reported, and flips (Sections 3.2, B.2, B.3).

Scoring is separate from generating, so any generations.jsonl can be scored again with other judges (`eval.rescore`). Rules read
the answer first; the extraction judge reads it where the rules cannot tell. An answer that neither can read stays unresolved:
it counts as not correct, and is counted on its own. Faithfulness is scored by `rewards` with mask "all" (right and wrong
answers), with the functions that train. scores.jsonl has one `EvalRecord` per rollout, keyed by reward name; verdicts.jsonl has
the rewards' scores with their reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import rewards.base as rewards
from eval.base import group_of
from eval.extract import extract_choice
from eval.extraction import EXTRACTION_TASK, UNRESOLVED, ExtractionItem
from eval.measures import ACCURACY, FORMAT, Measure, measures, reward_measures
from eval.miniworld_truth import statement_scores, with_true_boxes
from eval.models import ModelSpec
from eval.open_answers import same_open_answer
from fgrpo import box_forms, boxes
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_items, write_jsonl
from fgrpo.options import letter_index
from fgrpo.policy import backbone
from fgrpo.response import Response, answer_span, parse
from fgrpo.types import EvalRecord, Rollout, Sample, Score, Verdict
from judges.base import JudgeSet
from judges.imitation import imitates_verdict
from miniworld.truth import TruthBook
from rewards.content import is_blank

__all__ = ["Scorer", "answer_span", "extract_choice", "score_file"]

REFUSED = "the engine refused the request"
NO_TRACE = "no trace visible"
NO_JUDGE = "not scored: no judge"
NO_BOXES = {"points": "the model writes points, not boxes", "none": "the model is not asked for boxes"}
IN_FLIGHT = 256  # rollouts that are judged at a time
PER_SLOT, LEAST_IN_FLIGHT = (
    2,
    8,
)  # of a judge with limited calls: enough to keep it busy, few enough to complete one by one


def reported_rewards() -> list[tuple[Measure, rewards.Reward]]:
    """Each reward that evaluation reports, with its measure."""
    return [(measure, rewards.load(measure.score)) for measure in reward_measures()]


@dataclass(frozen=True)
class Scorer:
    """Everything that scoring needs besides the rollouts.

    Attributes:
        spec: the evaluated model, with its box tag and frame (`models.configured`).
        model: its name, for the records.
        judges: the evaluation judge and the extraction judge.
        truth: the miniature world's truth, None for real data.
        box_normaliser: divisor of Eq. 1, see `rewards.base.RewardContext`.
        pixels: the bounds within which the model's processor resizes an image.
        token_limit: of one answer; None if it is not known.
        columns: the reported rewards, which are found once.
    """

    spec: ModelSpec
    model: str
    judges: JudgeSet
    truth: TruthBook | None = None
    box_normaliser: Any = "max"
    pixels: boxes.PixelBounds = backbone.default().pixels
    token_limit: int | None = None
    columns: Sequence[tuple[Measure, rewards.Reward]] = field(default_factory=reported_rewards)

    async def score(self, pairs: Sequence[tuple[Sample, Rollout]]) -> list[EvalRecord]:
        """One record per rollout, in order. A rollout that the engine refused gets failed scores, and no judge is called."""
        answered = [pair for pair in pairs if pair[1].finish != "error"]
        records = {record.id: record for record in await self._score(answered)}
        scored = [records.get(rollout.id) or self._refused(sample, rollout) for sample, rollout in pairs]
        return [self._with_unread(record, *pair) for record, pair in zip(scored, pairs, strict=True)]

    def _with_unread(self, record: EvalRecord, sample: Sample, rollout: Rollout) -> EvalRecord:
        """`record` with counts by form: meta["boxes_other_form"], which are read, and meta["boxes_unread"]; where there are any."""
        if self.spec.mode != "think":
            return record
        tag, frame = self.spec.box_tag, self.spec.box_frame
        others = box_forms.others(rollout.text, tag, frame)
        if others:  # as they are read where the images are known
            others = box_forms.others(rollout.text, tag, frame, rewards.pixel_sizes(sample.images, self._context()))
        counts = {
            "boxes_other_form": others,
            "boxes_unread": box_forms.locations(rollout.text),
        }
        found = {key: dict(sorted(count.items())) for key, count in counts.items() if count}
        return replace(record, meta={**record.meta, **found}) if found else record

    def _refused(self, sample: Sample, rollout: Rollout) -> EvalRecord:
        answer = _Answer(Score.failure(REFUSED), None, "refused")
        expected = (ACCURACY,) if self.spec.mode == "direct" else measures()
        return self._record(sample, rollout, answer, {measure.score: answer.accuracy for measure in expected})

    async def _score(self, pairs: Sequence[tuple[Sample, Rollout]]) -> list[EvalRecord]:
        responses = [self._read(sample, rollout) for sample, rollout in pairs]
        answers = await self._answers(pairs, responses)
        by_reward = await self._reward_scores(pairs, responses) if self.spec.mode == "think" else {}
        records = []
        for i, (sample, rollout) in enumerate(pairs):
            scores = {ACCURACY.score: answers[i].accuracy, **{name: column[i] for name, column in by_reward.items()}}
            if self.spec.mode == "think":
                scores[FORMAT.score] = Score.of(float(responses[i].well_formed))
                scores |= statement_scores(sample, responses[i].think, answers[i].text, self.truth)
            records.append(self._record(sample, rollout, answers[i], scores, responses[i].has_trace))
        return records

    async def _reward_scores(
        self, pairs: Sequence[tuple[Sample, Rollout]], responses: Sequence[Response]
    ) -> dict[str, list[Score]]:
        """The scores of every reported reward, by reward name, one per pair."""
        items = [
            rewards.RewardItem(
                rollout.id,
                with_true_boxes(sample, self.truth),
                response,
                tokens=rollout.tokens if rollout.tokens or not rollout.text else None,
                finish=rollout.finish,
                group=rollout.sample_id,
            )
            for (sample, rollout), response in zip(pairs, responses, strict=True)
        ]
        context = self._context()
        # together, so that the calls about one answer follow each other and answers are complete one by one
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {m.score: group.create_task(self._column(m, r, items, context)) for m, r in self.columns}
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {name: task.result() for name, task in tasks.items()}

    def _context(self) -> rewards.RewardContext:
        least, most, factor = self.pixels
        return rewards.RewardContext(
            self.judges,
            "all",
            None,
            self.box_normaliser,
            least,
            most,
            self.spec.box_tag,
            self.spec.box_frame,
            factor,
            token_limit=self.token_limit,
            every_form=True,
        )

    async def _column(
        self,
        measure: Measure,
        reward: rewards.Reward,
        items: Sequence[rewards.RewardItem],
        context: rewards.RewardContext,
    ) -> list[Score]:
        """One reward's score of each item."""
        if measure.report.needs_boxes and self.spec.grounding != "boxes":
            return [Score.not_applicable(NO_BOXES[self.spec.grounding])] * len(items)
        if not self._is_judged(reward):
            return [Score.not_applicable(NO_JUDGE)] * len(items)
        if rewards.needs_trace(reward):
            return await self._of_traces(reward, items, context)
        return list(await reward(items, context))

    def _is_judged(self, reward: rewards.Reward) -> bool:
        """Whether the judges answer what the reward asks; True for a reward that asks nothing."""
        task = rewards.judge_task_of(reward)
        return task is None or self.judges.answers(task)

    async def _of_traces(
        self, reward: rewards.Reward, items: Sequence[rewards.RewardItem], context: rewards.RewardContext
    ) -> list[Score]:
        """The scores of a reward that judges traces: not applicable where the reply shows none."""
        shown = [item for item in items if item.response.has_trace]
        scored = iter(await reward(shown, context) if shown else [])
        return [next(scored) if item.response.has_trace else Score.not_applicable(NO_TRACE) for item in items]

    def _read(self, sample: Sample, rollout: Rollout) -> Response:
        """The parsed text in the model's tags. Without an answer block, the answer is the span that follows the trace."""
        tags, tag, frame = self.spec.tags, self.spec.box_tag, self.spec.box_frame
        response = parse(rollout.text, box_tag=tag, frame=frame, tags=tags, choices=sample.choices)
        return response if response.answer is not None else replace(response, answer=answer_span(rollout.text, tags))

    async def _answers(self, pairs: Sequence[tuple[Sample, Rollout]], responses: Sequence[Response]) -> list[_Answer]:
        answers: list[_Answer | None] = []
        unread: list[tuple[int, ExtractionItem]] = []
        for i, ((sample, rollout), response) in enumerate(zip(pairs, responses, strict=True)):
            span = answer_span(rollout.text, self.spec.tags)  # of a reply without tags: all of it
            if span is None or is_blank(span):
                answers.append(_Answer(Score.of(0.0, "no answer"), None, "none"))
            elif not sample.choices:
                is_same = same_open_answer(span, sample.answer, with_reasoning=self.spec.tags.untagged is not None)
                answers.append(_open(response.answer or span, is_same))
            elif (choice := extract_choice(rollout.text, sample.choices, self.spec.tags)) is not None:
                answers.append(_chosen(sample, choice, "rules"))
            else:
                answers.append(None)
                unread.append((i, ExtractionItem(rollout.id, sample.choices, span)))
        if unread and not self.judges.answers(EXTRACTION_TASK):
            for i, item in unread:
                answers[i] = _unresolved(item.answer_span)
        elif unread:
            verdicts = await self.judges.ask(EXTRACTION_TASK, [item for _, item in unread])
            for (i, item), verdict in zip(unread, verdicts, strict=True):
                answers[i] = _extracted(pairs[i][0], item.answer_span, verdict)
        return [answer for answer in answers if answer is not None]

    def _record(
        self, sample: Sample, rollout: Rollout, answer: _Answer, scores: Mapping[str, Score], has_trace: bool = True
    ) -> EvalRecord:
        meta = {
            "kind": rollout.meta.get("kind", "greedy"),
            "group": group_of(sample),
            "finish": rollout.finish,
            "answer": answer.text,
            "answer_from": answer.source,
            "judge": self.judges.name,
        }
        if rollout.meta.get("finish_known") is False:  # another harness' file that does not tell
            meta["finish_known"] = False
        if imitates_verdict(rollout.text):
            meta["imitates_verdict"] = True
        if self.spec.mode == "think" and not has_trace:
            meta["trace"] = NO_TRACE
        return EvalRecord(rollout.id, sample.source, self.model, sample.id, scores, meta)


@dataclass(frozen=True)
class _Answer:
    """The accuracy of one rollout, the answer's text (the chosen option's, if there is one), and what read it.

    `source` is "rules", "judge", "unresolved", "none" (no answer), "failed" or "refused".
    """

    accuracy: Score
    text: str | None
    source: str


def _open(span: str, is_same: bool | None) -> _Answer:
    """A free-form answer; one that the rules do not decide is unresolved, as an option that the judge cannot read."""
    return _unresolved(span) if is_same is None else _Answer(Score.of(float(is_same)), span, "rules")


def _unresolved(span: str) -> _Answer:
    return _Answer(Score.of(0.0, "unresolved"), span, "unresolved")


def _chosen(sample: Sample, choice: int, source: str, reason: str = "") -> _Answer:
    text = sample.choices[choice]
    return _Answer(Score.of(float(text == sample.answer), reason), text, source)


def _extracted(sample: Sample, span: str, verdict: Verdict) -> _Answer:
    if verdict.failed or verdict.label is None:
        return _Answer(Score.failure(f"extraction: {verdict.reason}"), span, "failed")
    index = None if verdict.label == UNRESOLVED else letter_index(verdict.label, sample.choices)
    if index is not None:
        return _chosen(sample, index, "judge", verdict.reason)
    return _unresolved(span)


def verdict_line(record: EvalRecord, reward_names: Sequence[str]) -> dict[str, Any]:
    """The line of verdicts.jsonl for one rollout: its answer, and each reward's score with reason and detail."""
    line: dict[str, Any] = {"id": record.id, "answer": record.meta["answer"], "answer_from": record.meta["answer_from"]}
    return line | {name: record.scores[name].to_dict() for name in reward_names if name in record.scores}


def in_flight(judges: JudgeSet) -> int:
    """How many rollouts to judge at a time, so that answers are complete, and stored, one after the other."""
    slots = [each.slots for each in (judges, *judges.delegates.values()) if each.slots is not None]
    return min(IN_FLIGHT, max(LEAST_IN_FLIGHT, PER_SLOT * max(slots))) if slots else IN_FLIGHT


async def score_file(
    scorer: Scorer, samples: Mapping[str, Sample], generations: Path, out: Path, progress: Any = None
) -> list[EvalRecord]:
    """Score the rollouts of `samples` (by id) in `generations` into `out`/scores.jsonl and `out`/verdicts.jsonl.

    Existing records stay, except those with a failed score, which are scored again. Each record is appended as soon as it is
    complete; at the end both files are in the order of `generations`.

    Args:
        progress: called with the number of rollouts that were scored before, then with 1 after each rollout.

    Returns:
        All records, in the order of `generations`.

    Raises:
        UserError: `generations` holds no rollout of `samples`.
    """
    rollouts = [r for r in read_items(generations, Rollout.from_dict, "answer") if r.sample_id in samples]
    if not rollouts:
        raise UserError(f"{generations} holds no answer to these questions; run `make eval` to generate them")
    scores_path = out / "scores.jsonl"
    stored = list(read_items(scores_path, EvalRecord.from_dict, "record of scores")) if scores_path.exists() else []
    known = {r.id: r for r in stored if not any(s.failed for s in r.scores.values())}
    write_jsonl(scores_path, (r.to_dict() for r in known.values()))
    with Appender(scores_path) as sink:
        slots = asyncio.Semaphore(in_flight(scorer.judges))
        scored_before = sum(rollout.id in sink for rollout in rollouts)
        if progress is not None and scored_before:
            progress(scored_before)

        async def one(rollout: Rollout) -> None:
            async with slots:
                (record,) = await scorer.score([(samples[rollout.sample_id], rollout)])
            sink.add(record.to_dict())
            known[record.id] = record
            if progress is not None:
                progress(1)

        try:
            async with asyncio.TaskGroup() as group:
                for rollout in rollouts:
                    if rollout.id not in sink:
                        group.create_task(one(rollout))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first error; the others were cancelled because of it
    records = [known[r.id] for r in rollouts]
    ids = {r.id for r in rollouts}
    of_other_benchmarks = sorted((r for r in known.values() if r.id not in ids), key=lambda r: r.id)
    write_jsonl(scores_path, (r.to_dict() for r in [*records, *of_other_benchmarks]))
    names = [measure.score for measure in reward_measures()]
    write_jsonl(out / "verdicts.jsonl", (verdict_line(r, names) for r in [*records, *of_other_benchmarks]))
    return records
