"""Consistency reward R_C (Section 3.2; the first constraint of Eq. 2): 1 if the trace entails the answer, else 0. A text judge decides.

Rules decide first, without a call to the judge:
- In training (mask "correct") a wrong answer is not applicable.
- No trace, or a trace without content (":", "Thought process:"; `openers` in sentence_rules.yaml), entails nothing: 0. Model
  judges accept such traces. In evaluation, a reply that shows no trace at all is not applicable (`needs_trace`).
- Without a single closed answer there is nothing that the trace could entail: 0 with detail {"cause": "no_answer"}. The
  paper's inconsistency rate is over all samples, so that no model can lower it by not answering; `cause` lets a table leave
  these samples out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.types import Score, Verdict
from judges.requests import Labelled, Trusted, fence_options
from judges.task import BoxFrame, JudgeTask, NoAnswer, Truth
from miniworld.language import parse_question
from miniworld.oracle import judge_conclusion
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.boxes_in_text import without_tags
from rewards.sentence_rules import rules
from rewards.task import is_correct

CONSISTENCY_LABELS = ("CONSISTENT", "INCONSISTENT")

_TAG = re.compile(r"<[^<>]{0,40}>")
_SPACED_WORD = re.compile(r"[^\W\d_]+")
_LEAST_WORDS = 3  # "It moved left" has content; "Thought process:" and "left" do not
_LEAST_LETTERS_UNSPACED = 4  # of scripts that put no or few blanks between words
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class ConsistencyItem:
    """Does `answer` follow from `think`? `id` is the rollout's; `choices` are option texts in the order of their letters."""

    id: str
    question: str
    choices: tuple[str, ...]
    think: str
    answer: str


def _render(item: ConsistencyItem, frame: BoxFrame) -> Mapping[str, str]:
    return {
        "question": item.question,
        "options": fence_options(item.choices) if item.choices else Trusted("(none)"),
        "think": without_tags(item.think),
        "answer": item.answer,
    }


def _oracle(item: ConsistencyItem, truth: Truth) -> list[Labelled]:
    if parse_question(item.question) is None:
        raise NoAnswer("not a question of the miniature world")
    holds, reason = judge_conclusion(item.question, item.think, item.answer, item.choices)
    return [("CONSISTENT" if holds else "INCONSISTENT", reason)]


CONSISTENCY_TASK: JudgeTask[ConsistencyItem] = JudgeTask(
    "consistency",
    Path(__file__).resolve().parent / "prompts" / "consistency.txt",
    CONSISTENCY_LABELS,
    _render,
    oracle=_oracle,
    record_kind="ConsistencyItem",
)
"""Does the trace entail the answer? Text alone: question, options, trace, answer; no image."""


def is_contentless(think: str) -> bool:
    """Whether a trace has too few words to say anything, once tags and stock openers are removed.

    Judged as a reader would see it: full-width letters count as letters, and invisible characters do not count.
    """
    visible = think
    if not think.isascii():
        visible = "".join(c for c in unicodedata.normalize("NFKC", think) if unicodedata.category(c) != "Cf")
    plain = rules().openers.sub(" ", _TAG.sub(" ", visible))
    words = _SPACED_WORD.findall(plain)
    if len(words) >= _LEAST_WORDS:
        return False
    letters = "".join(word for word in words if not word.isascii())
    return sum(unicodedata.name(c, "").startswith(_UNSPACED) for c in letters) < _LEAST_LETTERS_UNSPACED


class ConsistencyReward:
    """R_C, with detail {"cause": "judge" | "no_answer" | "no_trace"}."""

    name = "consistency"
    report: Report | None = Report(
        "inconsistency",
        "inconsistency",
        higher_is_better=False,
        inverted=True,
        binary=True,
        symbol="C",
        colour="#009E73",
        order=1,
    )
    judge_task: JudgeTask[Any] | None = CONSISTENCY_TASK
    needs_trace = True

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores = [_score_by_rule(item, context) for item in items]
        judged = [i for i, score in enumerate(scores) if score is None]
        if judged:
            verdicts = await context.judges.ask(CONSISTENCY_TASK, [_judge_item(items[i]) for i in judged])
            for i, verdict in zip(judged, verdicts, strict=True):
                scores[i] = _score(verdict)
        return [score for score in scores if score is not None]


def _score_by_rule(item: RewardItem, context: RewardContext) -> Score | None:
    """The score of a rollout that needs no judge; None if a judge decides."""
    if context.mask == "correct" and not is_correct(item):
        return Score.not_applicable("the answer is wrong")
    if not item.response.answer:
        return Score.of(0.0, "there is no single closed answer", cause="no_answer")
    if is_contentless(item.response.think):
        return Score.of(0.0, "the trace says nothing", cause="no_trace")
    return None


def _judge_item(item: RewardItem) -> ConsistencyItem:
    sample, response = item.sample, item.response
    return ConsistencyItem(item.rollout_id, sample.question, sample.choices, response.think, response.answer or "")


def _score(verdict: Verdict) -> Score:
    if verdict.failed or verdict.label not in CONSISTENCY_LABELS:
        return Score.failure(verdict.reason or f"unusable label {verdict.label!r}")
    return Score.of(float(verdict.label == "CONSISTENT"), verdict.reason, cause="judge", judge=verdict.judge)


REWARD: Reward = ConsistencyReward()
