"""Consistency reward R_C (Section 3.2; the first constraint of Eq. 2): 1 if the trace entails the answer, else 0; asks a text judge.

Decided here, before any judge is asked:
- training (mask "correct"): a wrong answer is not applicable, and costs no call;
- no trace, or a trace without content (":", "Thought process:"; rules/openers in sentence_rules.yaml), entails nothing: 0.
  Model judges say yes to such traces, so none is asked;
- no single closed answer: nothing is there that the trace could entail: 0 with detail {"cause": "no_answer"}. The paper's
  inconsistency rate is over all samples, and so no model can lower it by not answering; `cause` lets a table take them out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from fgrpo.types import Score, Verdict
from judges import ConsistencyItem
from rewards.base import Report, Reward, RewardContext, RewardItem
from rewards.rules import rules
from rewards.task import is_correct

_TAG = re.compile(r"<[^<>]{0,40}>")
_SPACED_WORD = re.compile(r"[^\W\d_]+")
_LEAST_WORDS = 3  # "It moved left" says something; "Thought process:" and "left" do not
_LEAST_LETTERS_UNSPACED = 4  # of scripts that put no or few blanks between words
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def is_contentless(think: str) -> bool:
    """Whether a trace says nothing: too few words once tags and stock openers are taken away.

    Looked at as a reader would see it: full-width letters are letters, and invisible characters are not there.
    """
    seen = think
    if not think.isascii():
        seen = "".join(c for c in unicodedata.normalize("NFKC", think) if unicodedata.category(c) != "Cf")
    plain = rules().openers.sub(" ", _TAG.sub(" ", seen))
    words = _SPACED_WORD.findall(plain)
    if len(words) >= _LEAST_WORDS:
        return False
    letters = "".join(word for word in words if not word.isascii())
    return sum(unicodedata.name(c, "").startswith(_UNSPACED) for c in letters) < _LEAST_LETTERS_UNSPACED


class ConsistencyReward:
    """R_C, with detail {"cause": "judge" | "no_answer" | "no_trace"}."""

    name = "consistency"
    report = Report(
        "inconsistency",
        "inconsistency",
        higher_is_better=False,
        inverted=True,
        binary=True,
        symbol="C",
        colour="#009E73",
    )

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores = [_before_the_judge(item, context) for item in items]
        asked = [i for i, score in enumerate(scores) if score is None]
        if asked:
            verdicts = await context.judges.consistency.judge([_question(items[i]) for i in asked])
            for i, verdict in zip(asked, verdicts, strict=True):
                scores[i] = _score(verdict)
        return [score for score in scores if score is not None]


def _before_the_judge(item: RewardItem, context: RewardContext) -> Score | None:
    if context.mask == "correct" and not is_correct(item):
        return Score.not_applicable("the answer is wrong")
    if not item.response.answer:
        return Score.of(0.0, "there is no single closed answer", cause="no_answer")
    if is_contentless(item.response.think):
        return Score.of(0.0, "the trace says nothing", cause="no_trace")
    return None


def _question(item: RewardItem) -> ConsistencyItem:
    sample, response = item.sample, item.response
    return ConsistencyItem(item.rollout_id, sample.question, sample.choices, response.think, response.answer or "")


def _score(verdict: Verdict) -> Score:
    if verdict.failed or verdict.label not in ("CONSISTENT", "INCONSISTENT"):
        return Score.failure(verdict.reason or f"unusable label {verdict.label!r}")
    return Score.of(float(verdict.label == "CONSISTENT"), verdict.reason, cause="judge", judge=verdict.judge)


REWARD: Reward = ConsistencyReward()
