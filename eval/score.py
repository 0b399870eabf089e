"""Scoring of stored generations: accuracy, consistency, semantic and spatial grounding, flips (Sections 3.2, B.2, B.3).

Apart from generating: any generations.jsonl can be scored again with other judges (`eval.rescore`). Accuracy is by rules
first, the extraction judge reads the answer where the rules cannot tell, and what it cannot tell either stays unresolved:
counted as not correct, and counted on its own. Faithfulness is scored by `rewards` with mask "all" (right and wrong
answers), the same functions that train. scores.jsonl has one `EvalRecord` a rollout, verdicts.jsonl what the judges said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rewards.base as rewards
from eval.base import group_of
from eval.extract import answer_span, extract_choice, same_open_answer
from eval.extraction import EXTRACTION_TASK, UNRESOLVED, ExtractionItem
from eval.miniworld_truth import statement_scores, with_true_boxes
from eval.models import ModelSpec
from fgrpo import boxes
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_jsonl, write_jsonl
from fgrpo.policy import backbone
from fgrpo.response import Response, parse
from fgrpo.types import EvalRecord, Rollout, Sample, Score, Verdict
from judges.base import JudgeSet
from miniworld.truth import TruthBook

__all__ = ["Scorer", "answer_span", "extract_choice", "score_file"]

FAITHFULNESS = {"consistency": "consistency", "semantic": "semantic_grounding", "spatial": "spatial_grounding"}
REFUSED = "the engine refused the request"
NO_BOXES = {"points": "the model writes points, not boxes", "none": "the model is not asked for boxes"}
CHUNK = 512  # rollouts judged between two writes


@dataclass(frozen=True)
class Scorer:
    """Everything scoring needs besides the rollouts."""

    spec: ModelSpec
    model: str
    judges: JudgeSet
    truth: TruthBook | None = None
    box_normaliser: Any = "max"
    pixels: boxes.PixelBounds = backbone.default().pixels  # the processor's bounds (`model_files.pixel_bounds`)

    async def score(self, pairs: Sequence[tuple[Sample, Rollout]]) -> list[EvalRecord]:
        """One record a rollout, in order. What the engine refused has failed scores alone, and no judge is asked about it."""
        answered = [pair for pair in pairs if pair[1].finish != "error"]
        records = {record.id: record for record in await self._score(answered)}
        return [records.get(rollout.id) or self._refused(sample, rollout) for sample, rollout in pairs]

    def _refused(self, sample: Sample, rollout: Rollout) -> EvalRecord:
        answer = _Answer(Score.failure(REFUSED), None, "refused")
        names = (
            ["accuracy"] if self.spec.mode == "direct" else ["accuracy", *FAITHFULNESS, "format", "statement", "flip"]
        )
        return self._record(sample, rollout, answer, dict.fromkeys(names, answer.accuracy))

    async def _score(self, pairs: Sequence[tuple[Sample, Rollout]]) -> list[EvalRecord]:
        read = [self._read(rollout) for _, rollout in pairs]
        answers = await self._answers(pairs, read)
        by_name: dict[str, list[Score]] = {}
        if self.spec.mode == "think":
            items = [
                rewards.RewardItem(rollout.id, with_true_boxes(sample, self.truth), response)
                for (sample, rollout), response in zip(pairs, read, strict=True)
            ]
            least, most, factor = self.pixels
            tag, frame = self.spec.box_tag, self.spec.box_frame
            context = rewards.RewardContext(
                self.judges, "all", None, self.box_normaliser, least, most, tag, frame, factor
            )
            for name, reward in FAITHFULNESS.items():
                by_name[name] = await rewards.load(reward)(items, context)
            if self.spec.grounding != "boxes":
                by_name["spatial"] = [Score.not_applicable(NO_BOXES[self.spec.grounding])] * len(items)
        records = []
        for i, (sample, rollout) in enumerate(pairs):
            scores = {"accuracy": answers[i].accuracy, **{name: found[i] for name, found in by_name.items()}}
            if self.spec.mode == "think":
                scores["format"] = Score.of(float(read[i].well_formed))
                scores |= statement_scores(sample, read[i].think, answers[i].text, self.truth)
            records.append(self._record(sample, rollout, answers[i], scores))
        return records

    def _read(self, rollout: Rollout) -> Response:
        """The parsed text; a model without answer tags is judged on the span that follows its trace."""
        response = parse(rollout.text, box_tag=self.spec.box_tag, frame=self.spec.box_frame)
        return response if response.answer is not None else replace(response, answer=answer_span(rollout.text))

    async def _answers(self, pairs: Sequence[tuple[Sample, Rollout]], read: Sequence[Response]) -> list[_Answer]:
        found: list[_Answer | None] = []
        asked: list[tuple[int, ExtractionItem]] = []
        for i, ((sample, rollout), response) in enumerate(zip(pairs, read, strict=True)):
            span = response.answer
            if span is None:
                found.append(_Answer(Score.of(0.0, "no answer"), None, "none"))
            elif not sample.choices:
                found.append(_Answer(Score.of(float(same_open_answer(span, sample.answer))), span, "rules"))
            elif (choice := extract_choice(rollout.text, sample.choices)) is not None:
                found.append(_chosen(sample, choice, "rules"))
            else:
                found.append(None)
                asked.append((i, ExtractionItem(rollout.id, sample.choices, span)))
        if asked:
            verdicts = await self.judges.ask(EXTRACTION_TASK, [item for _, item in asked])
            for (i, item), verdict in zip(asked, verdicts, strict=True):
                found[i] = _extracted(pairs[i][0], item.answer_span, verdict)
        return [answer for answer in found if answer is not None]

    def _record(self, sample: Sample, rollout: Rollout, answer: _Answer, scores: Mapping[str, Score]) -> EvalRecord:
        meta = {
            "kind": rollout.meta.get("kind", "greedy"),
            "group": group_of(sample),
            "finish": rollout.finish,
            "answer": answer.text,
            "answer_from": answer.source,
            "judge": self.judges.name,
        }
        return EvalRecord(rollout.id, sample.source, self.model, sample.id, scores, meta)


@dataclass(frozen=True)
class _Answer:
    """The accuracy of one rollout, the answer's text (the option's, where one was chosen), and who read it."""

    accuracy: Score
    text: str | None
    source: str


def _chosen(sample: Sample, choice: int, source: str, reason: str = "") -> _Answer:
    text = sample.choices[choice]
    return _Answer(Score.of(float(text == sample.answer), reason), text, source)


def _extracted(sample: Sample, span: str, verdict: Verdict) -> _Answer:
    if verdict.failed or verdict.label is None:
        return _Answer(Score.failure(f"extraction: {verdict.reason}"), span, "failed")
    index = ord(verdict.label.upper()) - ord("A") if len(verdict.label) == 1 and verdict.label != UNRESOLVED else -1
    if 0 <= index < len(sample.choices):
        return _chosen(sample, index, "judge", verdict.reason)
    return _Answer(Score.of(0.0, "unresolved"), span, "unresolved")


def verdict_line(record: EvalRecord) -> dict[str, Any]:
    """What the judges said of one rollout, for verdicts.jsonl."""
    line: dict[str, Any] = {"id": record.id, "answer": record.meta["answer"], "answer_from": record.meta["answer_from"]}
    for name in ("consistency", "semantic"):
        if name in record.scores:
            line[name] = record.scores[name].to_dict()
    return line


async def score_file(
    scorer: Scorer, samples: Mapping[str, Sample], generations: Path, out: Path, progress: Any = None
) -> list[EvalRecord]:
    """Score what `generations` holds of `samples` (by id) into `out`/scores.jsonl and `out`/verdicts.jsonl.

    Records that are there already are kept, those with a failed score are scored again. `progress` is told how many
    rollouts were done. Returns all records in the order of `generations`.

    Raises:
        UserError: `generations` holds nothing of `samples`.
    """
    rollouts = [r for r in map(Rollout.from_dict, read_jsonl(generations)) if r.sample_id in samples]
    if not rollouts:
        raise UserError(f"{generations} holds no answer to these questions; generate first (`make eval`)")
    scores_path = out / "scores.jsonl"
    held = [EvalRecord.from_dict(item) for item in read_jsonl(scores_path)] if scores_path.exists() else []
    known = {r.id: r for r in held if not any(s.failed for s in r.scores.values())}
    write_jsonl(scores_path, (r.to_dict() for r in known.values()))
    with Appender(scores_path) as sink:
        todo = [r for r in rollouts if r.id not in sink]
        for start in range(0, len(todo), CHUNK):
            pairs = [(samples[r.sample_id], r) for r in todo[start : start + CHUNK]]
            for record in await scorer.score(pairs):
                sink.add(record.to_dict())
                known[record.id] = record
            if progress is not None:
                progress(len(pairs))
    wanted = [known[r.id] for r in rollouts]
    asked = {r.id for r in rollouts}
    everything = wanted + sorted((r for r in known.values() if r.id not in asked), key=lambda r: r.id)
    write_jsonl(scores_path, (r.to_dict() for r in everything))
    write_jsonl(out / "verdicts.jsonl", map(verdict_line, everything))
    return wanted
