"""The part of a free-form answer that answers its question: "red" in "The color of the hat is red."

Distractors replace this part and keep the rest. Otherwise the right option is the one that repeats the question's words, and a
model finds it without the image. All of this is ours; it reads words only and needs no parser.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

WORD = re.compile(r"[\w'-]+")
DETERMINERS = {
    "a": "a", "an": "a", "the": "the", "some": "some", "his": "own", "her": "own", "its": "own", "their": "own", "my": "own",
}  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VERBS = _words(
    "is are was were be been being am has have had do does did can could will would may might must should there it he she they this "
    "that these those isn't aren't wasn't weren't doesn't don't it's he's she's they're there's"
)  # words that make a sentence of an answer
FUNCTION = VERBS | frozenset(DETERMINERS) | _words(
    "on in at of to by for from with and or as into onto over under near next behind between beside against around along across "
    "through up yes i you we him them what which who whose where when how why if so very also just only both "
    "front side s picture image photo"
)  # fmt: skip
_HOW_MANY = re.compile(r"\b(?:how (?:many|much)|(?:what|which) (?:is the )?number|count)\b", re.IGNORECASE)
_COLOR = re.compile(r"\bcolou?r", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)\b[\s,.;:!-]+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """An answer as `before` + `text` + `after`; `text` answers the question. `form` is its kind of article, "" for an entire answer."""

    before: str
    text: str
    after: str
    form: str = ""

    @property
    def is_entire(self) -> bool:
        """Whether the answer is nothing else."""
        return not self.form

    def with_text(self, text: str) -> str:
        """The answer with another text in the same place."""
        if not self.before and self.text[:1].isupper():
            text = text[:1].upper() + text[1:]
        return self.before + text + self.after


def essence(question: str, answer: str, ones: Collection[str]) -> str:
    """The word that decides, where a sentence around another one would be wrong by its grammar alone; else `answer`.

    These are "Yes" and "No" ("No, the hat is blue"), and a count of one ("There is one hat").

    Args:
        ones: how a count of one is written.
    """
    if match := _YES_NO.match(answer):
        return match.group(1)
    found = [w for w in WORD.findall(answer) if w.lower() in ones]
    return found[0] if len(found) == 1 and _HOW_MANY.search(question) else answer


def stem(word: str) -> str:
    """A word without common endings: "wears", "wearing" and "wear" are one."""
    word = word.lower().removesuffix("'s")
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word


def stems(text: str) -> frozenset[str]:
    """Stems of the content words of `text`."""
    return frozenset(stem(w) for w in WORD.findall(text) if w.lower() not in FUNCTION)


def overlap(question: str, option: str) -> int:
    """How many content words an option shares with its question."""
    return len(stems(question) & stems(option))


def part_of(question: str, answer: str, kinds: Sequence[Collection[str]], turns: Collection[str]) -> Part | None:
    """The part of `answer` that answers `question`; None if it is a sentence without one.

    Args:
        kinds: closed kinds of words, numbers first, then colors.
        turns: words with an opposite that a sentence can take in their place.
    """
    words = list(WORD.finditer(answer))
    lower = [w.group().lower() for w in words]
    asked = stems(question)
    is_sentence = any(w in VERBS for w in lower)
    new = [i for i, w in enumerate(lower) if w not in FUNCTION and stem(w) not in asked]
    entire = Part("", answer, "")
    if len(words) < 2 or (not is_sentence and not asked & stems(answer)):
        return entire
    for pattern, kind in zip((_HOW_MANY, _COLOR), kinds, strict=True):
        of_kind = [i for i, w in enumerate(lower) if w in kind or (kind is kinds[0] and w.isdecimal())]
        if of_kind and pattern.search(question):
            return _cut(answer, words, of_kind[-1], of_kind[-1])
    if not new:
        return None if is_sentence else entire
    first = last = new[-1]
    while earlier := [
        i for i in new if i < first and not VERBS.intersection(lower[i:first]) and _between(lower, i, first)
    ]:
        first = earlier[-1]
    if lower[first : last + 1] in (["no"], ["not"]):
        return None
    turning = [i for i in range(first, last + 1) if lower[i] in turns]
    if turning:
        return _cut(answer, words, turning[-1], turning[-1])
    return _cut(answer, words, first, last, with_article=lower[last] not in kinds[0] and lower[last] not in kinds[1])


def _between(words: Sequence[str], first: int, last: int) -> bool:
    """Whether only function words lie between two words."""
    return all(w in FUNCTION for w in words[first + 1 : last])


def _cut(answer: str, words: Sequence[re.Match[str]], first: int, last: int, *, with_article: bool = False) -> Part:
    """Words `first` to `last` of `answer`, if wanted with the article before them."""
    form = "none"
    if with_article and first > 0 and (article := words[first - 1].group().lower()) in DETERMINERS:
        first, form = first - 1, DETERMINERS[article]
    start, end = words[first].start(), words[last].end()
    text = answer[start:end]
    return Part(answer[:start], text, answer[end:], form)
