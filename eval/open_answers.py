"""Is a free-form answer the true one? Questions without options, read by the rules of `eval.extract`; no judge."""

from __future__ import annotations

import re
import unicodedata

from eval.answer_options import Options
from eval.answer_text import canonical
from eval.extract import LONGEST_SPAN, read_reply, read_span

_STEM = 4  # letters at which two words count as related ("dog", "dogs")
_VALUE = re.compile(r"n-?[\d.]+")
_WORDS = re.compile(r"[^\W\d_]{2,}")


def same_open_answer(text: str, gold: str, with_reasoning: bool = False) -> bool | None:
    """Whether `text` gives the free-form answer `gold` (questions without options: a word, a phrase, or a number).

    The rules are those of `extract_choice`, with `gold` as the only option and without letters. Numbers are equal by value, in
    digits or words; "more than 5", "about 5" and "the 5th" are not 5.

    Args:
        with_reasoning: `text` is a reply with its reasoning (`extract.read_reply`).

    Returns:
        False where the text clearly gives another answer: another number, yes for no, or none of the words of `gold`. None
        where the rules do not decide.
    """
    if _reads_open(text, gold) or (with_reasoning and read_reply(text, Options((gold,), has_letters=False)) == 0):
        return True
    return False if len(text) <= LONGEST_SPAN and _is_another(text, gold) else None


def _reads_open(text: str, gold: str) -> bool:
    return read_span(text, Options((gold,), has_letters=False)) == 0


def _is_another(text: str, gold: str) -> bool:
    """Whether an open answer clearly is not `gold`."""
    numbers = {token for token in canonical(text).split() if _VALUE.fullmatch(token)}
    if _VALUE.fullmatch(canonical(gold)):
        return (
            len(numbers) == 1 and canonical(gold) not in numbers and _reads_open(text, numbers.pop().removeprefix("n"))
        )
    if polar := Options((gold,), has_letters=False).polar:
        return _reads_open(text, "no" if "yes" in polar else "yes")
    own = set(_WORDS.findall(canonical(gold)))
    others = set(_WORDS.findall(canonical(text)))
    return bool(own and others) and not any(_may_be_one(one, other) for one in own for other in others)


def _may_be_one(one: str, other: str) -> bool:
    """Whether two words may mean the same: equal beginnings, one within the other where no blanks part words, other scripts."""
    if one.isascii() and other.isascii():
        return one.startswith(other[:_STEM]) or other.startswith(one[:_STEM])
    if one.isascii() != other.isascii():
        return True  # a translation, or a word with an accent
    return one in other or other in one or one[:_STEM] == other[:_STEM] or not _is_one_script(one, other)


def _is_one_script(one: str, other: str) -> bool:
    return len({unicodedata.name(word[0], "").partition(" ")[0] for word in (one, other)}) == 1
