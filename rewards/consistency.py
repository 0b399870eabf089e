"""Consistency reward R_C (Section 3.2; the first constraint of Eq. 2): 1 if the trace entails the answer, else 0. A text judge decides.

Rules decide first, without a call to the judge:
- In training (mask "correct") a wrong answer is not applicable.
- No trace, or a trace without content (":", "Thought process:"; rewards/content.py), entails nothing: 0. Model judges accept
  such traces. In evaluation, a reply that shows no trace at all is not applicable (`needs_trace`).
- Without a single closed answer, or with one that shows nothing (zero-width characters), there is nothing that the trace
  could entail: 0 with detail {"cause": "no_answer"}. The paper's inconsistency rate is over all samples, so that no model can
  lower it by not answering; `cause` lets a table leave these samples out.

A judge with `blind` does not see the answer: it says at which option the trace ends, and code compares. Items whose answer is
not one option's letter or text, or without options, are judged in the plain form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.types import Score, Verdict
from judges.requests import Labelled, Trusted, fence_options
from judges.task import BlindForm, BoxFrame, JudgeTask, NoAnswer, Truth
from miniworld.language import parse_question
from miniworld.oracle import judge_conclusion
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.boxes_in_text import without_tags
from rewards.content import is_blank, is_contentless
from rewards.task import is_correct, matches

CONSISTENCY_LABELS = ("CONSISTENT", "INCONSISTENT")
NO_OPTION = "0"  # the blind form's label for a trace that ends at no option


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


def _letters(item: ConsistencyItem) -> tuple[str, ...]:
    return (*(chr(ord("A") + i) for i in range(len(item.choices))), NO_OPTION)


def _answered(item: ConsistencyItem) -> str | None:
    """The letter of the option that the answer names; None if it names none or several."""
    named = [i for i, choice in enumerate(item.choices) if matches(item.answer, choice, item.choices)]
    return chr(ord("A") + named[0]) if len(named) == 1 else None


def _render_blind(item: ConsistencyItem, frame: BoxFrame) -> Mapping[str, str]:
    return {key: text for key, text in _render(item, frame).items() if key != "answer"}


def _read_blind(item: ConsistencyItem, letter: str) -> Labelled:
    where = "no option" if letter == NO_OPTION else f"option {letter}"
    holds = letter == _answered(item)
    return CONSISTENCY_LABELS[0 if holds else 1], f"the reasoning ends at {where}"


def _oracle_blind(item: ConsistencyItem, truth: Truth) -> list[Labelled]:
    if parse_question(item.question) is None:
        raise NoAnswer("not a question of the miniature world")
    ends = [x for x in _letters(item) if x != NO_OPTION]
    held = [x for x in ends if judge_conclusion(item.question, item.think, x, item.choices)[0]]
    return [(held[0], "all statements imply it") if len(held) == 1 else (NO_OPTION, "no single conclusion")]


BLIND_TASK: JudgeTask[ConsistencyItem] = JudgeTask(
    "consistency_blind",
    Path(__file__).resolve().parent / "prompts" / "consistency_blind.txt",
    _letters,
    _render_blind,
    oracle=_oracle_blind,
    record_kind="ConsistencyItem/blind",
)
"""At which option does the trace end? The judge does not see the answer."""

CONSISTENCY_TASK: JudgeTask[ConsistencyItem] = JudgeTask(
    "consistency",
    Path(__file__).resolve().parent / "prompts" / "consistency.txt",
    CONSISTENCY_LABELS,
    _render,
    oracle=_oracle,
    record_kind="ConsistencyItem",
    blind=BlindForm(BLIND_TASK, lambda item: _answered(item) is not None, _read_blind),
)
"""Does the trace entail the answer? Text alone: question, options, trace, answer; no image."""


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
        definition="Share of answers whose trace does not entail them, as a judge reads question, trace and answer without the image.",
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
    if is_blank(item.response.answer):
        return Score.of(0.0, "there is no single closed answer", cause="no_answer")
    if is_contentless(item.response.think, " ".join((item.sample.question, *item.sample.choices))):
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
