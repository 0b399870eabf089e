"""Semantic grounding reward R_G (Section 3.2, Appendix A.1): the share of visual sentences that the image supports.

The trace is split into sentences; trivial ones (sentence_rules.yaml) are not judged. A judge labels every other sentence, given
all sentences before it: CORRECT (1), INCORRECT (0; false, or repeated without new evidence) or SKIP (left out). If the judge
accepts a claim that an earlier sentence makes in the same words, with no box in between, the sentence is INCORRECT all the
same: repetition must not earn reward. R_G is the mean over what is left.
Not applicable: no scorable sentence; in training (mask "correct") also a wrong answer. One sentence without a verdict makes
the rollout's score failed, because a mean over the others would be another reward.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.types import Frame, Score, Verdict
from judges.requests import NUMBERED_LABELS, Labelled, Trusted, fence
from judges.task import BoxFrame, JudgeTask, Truth
from miniworld.oracle import judge_sentence
from rewards.base import Report, Reward, RewardContext, RewardItem, model_sizes
from rewards.boxes_in_text import BoxNotation
from rewards.sentences import BOX, Sentence, sentences
from rewards.task import is_correct

__all__ = ["GROUNDING_LABELS", "GROUNDING_TASK", "REPEATED", "REWARD", "GroundingItem", "Sentence", "sentences"]

GROUNDING_LABELS = ("CORRECT", "INCORRECT", "SKIP")
REPEATED = "the same claim in the same words, without new evidence"
_WORDS = re.compile(r"\w+")  # two sentences are the same if their words and numbers are


@dataclass(frozen=True)
class GroundingItem:
    """All sentences of one rollout that are to be judged, each with the sentences before it.

    Attributes:
        id: the rollout's.
        images: paths.
        question: the sample's.
        sentences: the visual sentences, in order.
        contexts: for each of them, all sentences of the trace that come before it.
        image_sizes: (width, height) in pixels of each image: as the policy's processor resizes it, or of the file if
            `box_frame` is "original". A backend needs them to convert boxes to the judge's frame. Empty if unknown.
        box_tag, box_frame: how the sentences write boxes.
    """

    id: str
    images: tuple[str, ...]
    question: str
    sentences: tuple[str, ...]
    contexts: tuple[tuple[str, ...], ...]
    image_sizes: tuple[tuple[int, int], ...] = ()
    box_tag: str = "bbox"
    box_frame: Frame = "model"


def _render(item: GroundingItem, frame: BoxFrame) -> Mapping[str, str]:
    """Question and trace; only the sentences to be judged are numbered. Raises ValueError if `contexts` do not fit."""
    notation = BoxNotation(item.box_tag, item.box_frame, item.image_sizes)
    lines, number = [], 0
    places = {len(context): i for i, context in enumerate(item.contexts)}
    trace = (*item.contexts[-1], item.sentences[-1]) if item.sentences else ()
    for place, sentence in enumerate(trace):
        if place in places:
            if item.sentences[places[place]] != sentence or item.contexts[places[place]] != trace[:place]:
                raise ValueError(f"grounding item {item.id}: contexts are not what precedes the sentences")
            number += 1
        mark = f"{number}." if place in places else "-"
        lines.append(f"{mark} {fence(notation.rewrite(sentence, frame))}")
    if number != len(item.sentences):
        raise ValueError(f"grounding item {item.id}: two sentences have one place")
    return {
        "question": item.question,
        "sentences": Trusted("\n".join(lines)),
        "frame_note": Trusted(notation.note(frame)),
    }


def _one_per_sentence(item: GroundingItem) -> list[GroundingItem]:
    pairs = zip(item.sentences, item.contexts, strict=True)
    return [dataclasses.replace(item, sentences=(s,), contexts=(c,)) for s, c in pairs]


def _oracle(item: GroundingItem, truth: Truth) -> list[Labelled]:
    scenes = truth.scenes(item.images)
    pairs = zip(item.sentences, item.contexts, strict=True)
    return [judge_sentence(scenes, item.question, context, sentence) for sentence, context in pairs]


GROUNDING_TASK: JudgeTask[GroundingItem] = JudgeTask(
    "grounding",
    Path(__file__).resolve().parent / "prompts" / "grounding.txt",
    GROUNDING_LABELS,
    _render,
    reply=NUMBERED_LABELS,
    size=lambda item: len(item.sentences),
    images=lambda item: item.images,
    split=_one_per_sentence,
    oracle=_oracle,
    record_kind="GroundingItem",
)
"""Does the image support each sentence? One verdict per sentence, all sentences of a rollout in one call."""


class SemanticGroundingReward:
    """R_G, with detail {"sentences": [{"text", "visual", "label", "reason"}]} (label None for trivial ones)."""

    name = "semantic_grounding"
    report: Report | None = Report("semantic_grounding", "semantic grounding", symbol="G", colour="#0072B2")
    judge_task: JudgeTask[Any] | None = GROUNDING_TASK

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores: list[Score | None] = []
        judged: list[tuple[int, list[Sentence], GroundingItem]] = []
        for i, item in enumerate(items):
            trace = sentences(item.response.think)
            scores.append(_score_by_rule(item, trace, context))
            if scores[-1] is None:
                judged.append((i, trace, _judge_item(item, trace, context)))
        if judged:
            verdicts = await context.judges.ask_several(GROUNDING_TASK, [item for _, _, item in judged])
            for (i, trace, _), of_rollout in zip(judged, verdicts, strict=True):
                scores[i] = _score(trace, of_rollout)
        return [score for score in scores if score is not None]


def _score_by_rule(item: RewardItem, trace: Sequence[Sentence], context: RewardContext) -> Score | None:
    """The score of a rollout that needs no judge; None if a judge decides."""
    if context.mask == "correct" and not is_correct(item):
        return Score.not_applicable("the answer is wrong")
    if not any(s.visual for s in trace):
        return Score.not_applicable("no scorable sentence")
    return None


def _judge_item(item: RewardItem, trace: Sequence[Sentence], context: RewardContext) -> GroundingItem:
    texts = [s.text for s in trace]
    visual = [i for i, s in enumerate(trace) if s.visual]
    try:
        is_original = context.box_frame == "original"
        images = item.sample.images
        sizes = tuple(map(image_size, images)) if is_original else model_sizes(images, context)
    except IMAGE_ERRORS:
        sizes = ()  # the judge opens the image itself, and fails with a reason if it cannot
    return GroundingItem(
        item.rollout_id,
        item.sample.images,
        item.sample.question,
        tuple(texts[i] for i in visual),
        tuple(tuple(texts[:i]) for i in visual),
        sizes,
        context.box_tag,
        context.box_frame,
    )


def _score(trace: Sequence[Sentence], verdicts: Sequence[Verdict]) -> Score:
    """The mean of one rollout's verdicts, which belong to its visual sentences in order."""
    for verdict in verdicts:
        if verdict.failed or verdict.label not in GROUNDING_LABELS:
            return Score.failure(verdict.reason or f"unusable label {verdict.label!r}")
    of_visual = iter(verdicts)
    detail = []
    repeated = _repeated(trace)
    for i, s in enumerate(trace):
        judged = next(of_visual) if s.visual else None
        label, reason = (judged.label, judged.reason) if judged else (None, "")
        by_rule = label == "CORRECT" and i in repeated
        if by_rule:
            label, reason = "INCORRECT", REPEATED
        rule = {"by_rule": True} if by_rule else {}  # not the judge's own label
        detail.append({"text": s.text, "visual": s.visual, "label": label, "reason": reason, **rule})
    values = [float(d["label"] == "CORRECT") for d in detail if d["label"] not in (None, "SKIP")]
    if not values:
        return Score(None, "no sentence with a claim about the image", False, {"sentences": detail})
    return Score.of(sum(values) / len(values), sentences=detail, judge=verdicts[0].judge)


def _repeated(trace: Sequence[Sentence]) -> set[int]:
    """Places of sentences that occur earlier in the same words, with no new box in between."""
    last_place: dict[tuple[str, ...], int] = {}
    repeated, last_box = set(), -1
    for i, s in enumerate(trace):
        has_box = BOX.search(s.text) is not None
        words = tuple(_WORDS.findall(s.text.casefold()))
        before = last_place.get(words)
        if before is not None and (has_box or last_box <= before):
            repeated.add(i)
        last_place[words] = i
        if has_box and before is None:  # the same box again is no new evidence
            last_box = i
    return repeated


REWARD: Reward = SemanticGroundingReward()
