"""Task reward R_task = R_format + R_acc (Section 3.1): 0, 1 or 2, always applicable.

R_format: the text is exactly `<think>…</think><answer>…</answer>`. R_acc: the answer is the gold option, up to case and
punctuation; rules only, no judge. `detail` holds both, because R_acc masks the other rewards (Eq. 5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgrpo.types import Score
from fgrpo.visible_text import visible
from rewards.base import Report, Reward, RewardContext, RewardItem

# Numbers keep sign, decimals and groups ("-5" is not "5", "2.5" is not "25"); all other characters but letters are ignored.
# Signs that compare or deny are no punctuation either ("<5" is not "5", nor "❌ B" "B").
_TOKEN = re.compile(r"(?:(?<![\w.])[+-])?\d+(?:[.,:/]\d+)*|(?<![\w.])\.\d+|[^\W\d_]+|_+|[<>≤≥≠≈±¬✗✘❌✖❎🚫⛔👎☐]")
# Signs beside a number that change it; an answer must not have one that its option lacks ("5%" is not "5").
_SIGNS = re.compile(r"(?<=\d)\s?[%‰+]|-?[$€£¥₹~](?=\s?[+-]?\.?\d)")
_APOSTROPHE = re.compile(r"(?<=\w)['’`](?=\w)")


def matches(answer: str | None, gold: str, choices: Sequence[str]) -> bool:
    """Whether `answer` is the gold option: its letter, its text, or letter and text ("B", "(b)", "B. left", "Left.").

    Only case, punctuation and blanks are ignored: "left" is not "not left", and an answer that is another option's text is
    never read as a letter. Without choices the texts must be equal.

    Args:
        answer: content of the answer block; None (no single closed block) never matches.
        gold: the gold option's text (read as a letter if no option has that text).
        choices: option texts in the order of their letters.
    """
    if answer is None:
        return False
    tokens = _tokens(answer)
    if not tokens:
        return False
    texts = [_tokens(choice) for choice in choices]
    index = _gold_index(gold, choices, texts)
    if not _signs(answer) <= _signs(gold if index is None else choices[index]):
        return False
    if index is None:
        return tokens == _tokens(gold)
    if tokens == texts[index]:
        # Punctuation distinguishes options that differ in nothing else.
        twins = [c for c, text in zip(choices, texts, strict=True) if text == texts[index]]
        return len(twins) == 1 or _plain(answer) == _plain(choices[index])
    if tokens in texts:
        return False
    letter = (chr(ord("a") + index),)
    return tokens in (letter, letter + texts[index], texts[index] + letter)


def _gold_index(gold: str, choices: Sequence[str], texts: Sequence[tuple[str, ...]]) -> int | None:
    """Index of the gold option: by its exact text, its tokens, or its letter; None if there is none."""
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
    return " ".join(visible(text).replace("+/-", "±").replace("[ ]", "☐").casefold().split())


def _signs(text: str) -> set[str]:
    return {sign.strip() for sign in _SIGNS.findall(_plain(text))}


def _tokens(text: str) -> tuple[str, ...]:
    """Words and numbers of `text`, case-folded; a text of signs alone ("<", "+") is one token."""
    plain = _plain(text)
    tokens = tuple(_TOKEN.findall(_APOSTROPHE.sub("", plain)))
    return tokens or ((plain,) if plain else ())


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
    """Whether R_acc = 1."""
    return matches(item.response.answer, item.sample.answer, item.sample.choices)


REWARD: Reward = TaskReward()
