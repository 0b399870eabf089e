"""Task reward R_task = R_format + R_acc (Section 3.1): 0, 1 or 2, always applicable.

R_format: the text is exactly `<think>…</think><answer>…</answer>`. R_acc: the answer is the gold option, case and
punctuation aside; rules only, no judge. `detail` holds both, since R_acc masks the other rewards (Eq. 5).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from fgrpo.types import Score
from rewards.base import Report, Reward, RewardContext, RewardItem

# Numbers keep sign, decimals and groups ("-5" is not "5", "2.5" is not "25"); everything else that is no letter falls away.
_TOKEN = re.compile(r"(?:(?<![\w.])[+-])?\d+(?:[.,:/]\d+)*|(?<![\w.])\.\d+|[^\W\d_]+|_+")
_APOSTROPHE = re.compile(r"(?<=\w)['’`](?=\w)")
_MINUS = str.maketrans({"−": "-", "–": "-", "—": "-"})


def matches(answer: str | None, gold: str, choices: Sequence[str]) -> bool:
    """Whether `answer` is the gold option: its letter, its text, or letter and text ("B", "(b)", "B. left", "Left.").

    Case, punctuation and blanks aside, and nothing else: "left" is not "not left", and an answer that is another option's
    text is never a letter. Without choices the texts must be equal.

    Args:
        answer: what stood in the answer block; None (no single closed block) never matches.
        gold: the gold option's text (a letter is understood if no option has that text).
        choices: option texts in the order of their letters.
    """
    if answer is None:
        return False
    given = _tokens(answer)
    if not given:
        return False
    texts = [_tokens(choice) for choice in choices]
    index = _gold_index(gold, choices, texts)
    if index is None:
        return given == _tokens(gold)
    if given == texts[index]:
        # Options that differ in punctuation alone are told apart by it.
        twins = [c for c, text in zip(choices, texts, strict=True) if text == texts[index]]
        return len(twins) == 1 or _plain(answer) == _plain(choices[index])
    if given in texts:
        return False
    letter = (chr(ord("a") + index),)
    return given in (letter, letter + texts[index], texts[index] + letter)


def _gold_index(gold: str, choices: Sequence[str], texts: Sequence[tuple[str, ...]]) -> int | None:
    """Where the gold option stands: by its exact text, its text, or its letter."""
    if gold in choices:
        return list(choices).index(gold)
    tokens = _tokens(gold)
    if tokens in texts:
        return list(texts).index(tokens)
    if len(tokens) == 1 and len(tokens[0]) == 1:
        index = ord(tokens[0]) - ord("a")
        if 0 <= index < len(choices):
            return index
    return None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _tokens(text: str) -> tuple[str, ...]:
    """Words and numbers of `text`, folded; a text of signs alone ("<", "+") is itself."""
    plain = _plain(text).translate(_MINUS)
    found = tuple(_TOKEN.findall(_APOSTROPHE.sub("", plain)))
    return found or ((plain,) if plain else ())


class TaskReward:
    """R_task of every rollout, with detail {"format": 0|1, "accuracy": 0|1}."""

    name = "task"
    report: Report | None = None  # evaluation reports accuracy and format instead

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores = []
        for item in items:
            form = int(item.response.well_formed)
            accuracy = int(is_correct(item))
            scores.append(Score.of(form + accuracy, format=form, accuracy=accuracy))
        return scores


def is_correct(item: RewardItem) -> bool:
    """R_acc = 1."""
    return matches(item.response.answer, item.sample.answer, item.sample.choices)


REWARD: Reward = TaskReward()
