"""Semantic grounding reward R_G (Section 3.2, Appendix A.1): the share of visual sentences that the image supports.

The trace is split into sentences; trivial ones (sentence_rules.yaml) are not judged. A judge labels every other sentence, given
all sentences before it: CORRECT (1), INCORRECT (0; false, or repeated without new evidence) or SKIP (left out). Two rules are added.
A claim earns once (rewards/claims.py): where the judge accepts it again, the sentence is INCORRECT all the same. Only
the first `JUDGED_SENTENCES` visual sentences of a trace are judged; those after them are INCORRECT, and counted.
R_G is the mean over what is left ("sentences", the paper), or over distinct claims ("claims"). The difference is logged: where
it grows, paraphrases of what is true dilute what is false.
Not applicable: no scorable sentence, unless the context counts it as zero (`unscorable`); in training (mask "correct") also a
wrong answer. One sentence without a verdict makes the rollout's score failed, because a mean over the others would be another
reward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.types import Frame, Score, Verdict
from judges.requests import NUMBERED_LABELS, Labelled, Trusted, fence
from judges.task import BoxFrame, JudgeTask, Truth
from miniworld.oracle import judge_sentence
from rewards.base import Report, Reward, RewardContext, RewardItem, pixel_sizes
from rewards.boxes_in_text import BoxNotation
from rewards.claims import claims, distinct, repeated
from rewards.sentences import Prefix, Sentence, sentences
from rewards.task import is_correct

__all__ = ["GROUNDING_LABELS", "GROUNDING_TASK", "REPEATED", "REWARD", "GroundingItem", "Sentence", "sentences"]

GROUNDING_LABELS = ("CORRECT", "INCORRECT", "SKIP")
REPEATED = "the same claim as before"
JUDGED_SENTENCES = 512  # of one trace; a response of 4096 tokens with claims of eight tokens has as many
OVER_CAP = f"after the first {JUDGED_SENTENCES} sentences with a claim"
NO_CLAIM = "no_claim"


@dataclass(frozen=True)
class GroundingItem:
    """All sentences of one rollout that are to be judged, each with the sentences before it.

    Attributes:
        id: the rollout's.
        images: paths.
        question: the sample's.
        sentences: the visual sentences, in order.
        contexts: for each of them, all sentences of the trace that come before it; `Prefix` keeps them in linear memory.
        image_sizes: (width, height) in pixels of each image: as the policy's processor resizes it, or of the file if
            `box_frame` is "original". A backend needs them to convert boxes to the judge's frame. Empty if unknown.
        box_tag, box_frame: how the sentences write boxes.
    """

    id: str
    images: tuple[str, ...]
    question: str
    sentences: tuple[str, ...]
    contexts: tuple[Sequence[str], ...]
    image_sizes: tuple[tuple[int, int], ...] = ()
    box_tag: str = "bbox"
    box_frame: Frame = "model"


def _render(item: GroundingItem, frame: BoxFrame) -> Mapping[str, str]:
    """Question and trace; only the sentences to be judged are numbered. Raises ValueError if `contexts` do not fit."""
    notation = BoxNotation(item.box_tag, item.box_frame, item.image_sizes)
    lines, number = [], 0
    places = {len(context): i for i, context in enumerate(item.contexts)}
    trace = (*item.contexts[-1], item.sentences[-1]) if item.sentences else ()
    last = item.contexts[-1] if item.contexts else ()
    for place, sentence in enumerate(trace):
        if place in places:
            context = item.contexts[places[place]]
            precedes = Prefix.shares(context, last) or tuple(context) == trace[:place]
            if item.sentences[places[place]] != sentence or not precedes:
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
    """R_G, with detail:

    - "sentences": [{"text", "visual", "label", "reason"}], label None for trivial ones; "by_rule" where a rule labels.
    - "counted": number of "repeated" claims and of sentences "over_cap", where there are any.
    - "monitor": {"dilution": mean over sentences minus mean over distinct claims}.
    - "cause": "no_claim" for a trace without a claim that counts as zero.
    """

    name = "semantic_grounding"
    report: Report | None = Report(
        "semantic_grounding",
        "semantic grounding",
        symbol="G",
        colour="#0072B2",
        order=2,
        definition="Share of a trace's visual sentences that a judge finds correct in the image; sentences that claim nothing are left out.",
    )
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
                scores[i] = _score(trace, of_rollout, context)
        return [score for score in scores if score is not None]


def _score_by_rule(item: RewardItem, trace: Sequence[Sentence], context: RewardContext) -> Score | None:
    """The score of a rollout that needs no judge; None if a judge decides."""
    if context.mask == "correct" and not is_correct(item):
        return Score.not_applicable("the answer is wrong")
    if not any(s.visual for s in trace):
        return _unscorable("no scorable sentence", context)
    return None


def _unscorable(reason: str, context: RewardContext, **detail: Any) -> Score:
    """The score of a trace that claims nothing about the image."""
    if context.unscorable == "zero":
        return Score.of(0.0, reason, cause=NO_CLAIM, **detail)
    return Score(None, reason, False, detail)


def _judge_item(item: RewardItem, trace: Sequence[Sentence], context: RewardContext) -> GroundingItem:
    texts = tuple(s.text for s in trace)
    visual = _judged_places(trace)
    return GroundingItem(
        item.rollout_id,
        item.sample.images,
        item.sample.question,
        tuple(texts[i] for i in visual),
        tuple(Prefix(texts, i) for i in visual),
        pixel_sizes(
            item.sample.images, context
        ),  # without them the judge opens the image, and fails with a reason if it cannot
        context.box_tag,
        context.box_frame,
    )


def _judged_places(trace: Sequence[Sentence]) -> list[int]:
    return [i for i, s in enumerate(trace) if s.visual][:JUDGED_SENTENCES]


def _score(trace: Sequence[Sentence], verdicts: Sequence[Verdict], context: RewardContext) -> Score:
    """The score of one rollout from the verdicts on its judged sentences, in order."""
    for verdict in verdicts:
        if verdict.failed or verdict.label not in GROUNDING_LABELS:
            return Score.failure(verdict.reason or f"unusable label {verdict.label!r}")
    judged = dict(zip(_judged_places(trace), verdicts, strict=True))
    of_judged = claims([trace[i].text for i in judged])
    places = list(judged)
    again = {places[n] for n in repeated(of_judged, [verdict.label == "CORRECT" for verdict in verdicts])}
    detail = [_labelled(s, judged.get(i), i in again) for i, s in enumerate(trace)]
    over_cap = sum(s.visual for s in trace) - len(judged)
    counted = {"repeated": sum(d["reason"] == REPEATED for d in detail), "over_cap": over_cap}
    more: dict[str, Any] = {"sentences": detail, "counted": {key: n for key, n in counted.items() if n}}
    by_sentence = [d["label"] == "CORRECT" for d in detail if d["label"] not in (None, "SKIP")]
    if not by_sentence:
        return _unscorable("no sentence with a claim about the image", context, **more)
    by_claim = _claim_values(distinct(of_judged), [detail[i] for i in places]) + [False] * over_cap
    means = {"sentences": sum(by_sentence) / len(by_sentence), "claims": sum(by_claim) / len(by_claim)}
    dilution = {"dilution": means["sentences"] - means["claims"]}
    return Score.of(means[context.grounding_mean], **more, monitor=dilution, judge=verdicts[0].judge)


def _labelled(sentence: Sentence, verdict: Verdict | None, is_repeated: bool) -> dict[str, Any]:
    """The sentence with its label and reason, for inspection. `by_rule`: the label is not the judge's own."""
    shown = {"text": sentence.text, "visual": sentence.visual}
    if not sentence.visual:
        return {**shown, "label": None, "reason": ""}
    if verdict is None:
        return {**shown, "label": "INCORRECT", "reason": OVER_CAP, "by_rule": True}
    if verdict.label == "CORRECT" and is_repeated:
        return {**shown, "label": "INCORRECT", "reason": REPEATED, "by_rule": True}
    return {**shown, "label": verdict.label, "reason": verdict.reason}


def _claim_values(numbers: Sequence[int], detail: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each distinct claim holds: no sentence that states it was judged INCORRECT. Skipped claims are left out."""
    holds: dict[int, bool] = {}
    for number, sentence in zip(numbers, detail, strict=True):
        if sentence["label"] != "SKIP" and not sentence.get("by_rule"):
            holds[number] = holds.get(number, True) and sentence["label"] == "CORRECT"
    return list(holds.values())


REWARD: Reward = SemanticGroundingReward()
