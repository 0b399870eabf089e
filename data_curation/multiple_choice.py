"""Free-form answers become multiple choice, deterministically, with plausible distractors of the same kind.

In this order: the alternatives that the question itself names ("left or right of"), yes and no, words of a closed kind
(opposites, colours, neighbouring numbers), and answers to questions of the same kind in the same data set. The paper says
that all data is multiple choice (Section 3.1) and not how; all of this is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_WORDS = 8  # a longer answer is a sentence, not an option
MAX_DIGITS = 30  # a longer row of figures is a code, not a number with neighbours
PER_KIND = 64  # answers remembered a kind of question
MAX_KINDS = 20_000  # kinds remembered a data set
_PAIRS = (
    "yes no", "true false", "left right", "above below", "top bottom", "up down", "front back", "behind front",
    "closer farther", "near far", "inside outside", "big small", "large little", "tall short", "long short", "open closed",
    "on off", "male female", "man woman", "boy girl", "indoors outdoors", "day night", "old young", "wet dry", "full empty",
)  # fmt: skip
OPPOSITES: dict[str, str] = {}
for _one, _two in (pair.split() for pair in _PAIRS):
    OPPOSITES.setdefault(_one, _two)
    OPPOSITES.setdefault(_two, _one)
COLORS = [
    "black",
    "white",
    "gray",
    "red",
    "green",
    "blue",
    "yellow",
    "brown",
    "orange",
    "purple",
    "pink",
    "silver",
    "gold",
    "tan",
    "beige",
]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORD = r"[\w'-]+"
_ARTICLE = r"(?:to the |on the |in the |at the |the |an? )?"


def clean(answer: str) -> str:
    """An answer without blanks around it and without its full stop."""
    return " ".join(answer.split()).rstrip(".").rstrip()


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text."""
    return tuple(re.findall(_WORD, text.lower()))


@dataclass
class AnswerPool:
    """Answers seen in a first pass over a data set, by kind of question; bounded, in order of appearance."""

    _kinds: dict[tuple[object, ...], list[str]] = field(default_factory=dict)

    def add(self, group: str, question: str, answer: str) -> None:
        """Remember an answer of `group` (a data set, or a part of one)."""
        answer = clean(answer)
        if not answer or len(words(answer)) > MAX_WORDS or _is_closed(answer.lower()):
            return  # a closed kind has its own distractors, and would be an implausible one elsewhere
        for kind in _kinds(group, question, answer):
            if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
                continue
            known = self._kinds.setdefault(kind, [])
            if len(known) < PER_KIND and answer not in known:
                known.append(answer)

    def like(self, group: str, question: str, answer: str) -> list[list[str]]:
        """Answers of the same kind, from the narrowest kind to the widest."""
        return [self._kinds.get(kind, []) for kind in _kinds(group, question, answer)]


def _kinds(group: str, question: str, answer: str) -> tuple[tuple[object, ...], ...]:
    asked, length = words(question), min(3, len(words(answer)))
    head, last = asked[:2], asked[-1:]
    return (group, head, last, length), (group, head, last), (group, head, length), (group, length)


def alternatives(question: str, answer: str) -> tuple[str, ...]:
    """The alternatives that `question` names, if `answer` is one of them: "left or right", "one, two or three".

    Each has as many words as the answer; articles before them are left out. Items of a list before the last two count only
    if they belong to the answer's closed kind, since "the car, red or blue" has the same form. () if there are none.
    """
    length = len(words(answer))
    if length == 0:
        return ()
    item = rf"{_ARTICLE}({_WORD}(?: {_WORD}){{{length - 1}}})"
    plain = answer.lower()
    for found in re.finditer(rf"\b((?:{item}, ?)*){item},? or {item}", " ".join(question.split()), re.IGNORECASE):
        kind = _closed_kind(plain)
        listed = [m.group(1) for m in re.finditer(rf"{item}, ?", found.group(1), re.IGNORECASE)]
        options = [o.lower() for o in listed if kind is not None and o.lower() in kind]
        options += [o.lower() for o in found.groups()[-2:]]
        if plain in options and len(set(options)) == len(options):
            return tuple(answer if option == plain else option for option in options)
    return ()


def _closed_kind(plain: str) -> Sequence[str] | None:
    return next((kind for kind in (NUMBERS, COLORS) if plain in kind), None)


def _is_closed(plain: str) -> bool:
    return plain in OPPOSITES or plain.isdecimal() or _closed_kind(plain) is not None


def _closed(answer: str, rng: random.Random, count: int) -> list[str]:
    """Distractors from a closed kind of words, [] if the answer belongs to none."""
    plain = answer.lower()
    if plain in OPPOSITES:
        found = [OPPOSITES[plain]]
    elif plain in COLORS:
        others = [c for c in COLORS if c != plain]
        found = rng.sample(others, min(count, len(others)))
    elif plain in NUMBERS or (plain.isdecimal() and len(plain) <= MAX_DIGITS):
        value = NUMBERS.index(plain) if plain in NUMBERS else int(plain)
        near = [v for v in range(max(0, value - count), value + count + 1) if v != value]
        picked = sorted(rng.sample(near, count), key=lambda v: abs(v - value))
        found = [NUMBERS[v] if plain in NUMBERS and v < len(NUMBERS) else str(v) for v in picked]
    else:
        return []
    return [f.capitalize() if answer[:1].isupper() else f for f in found]


def make_choices(
    group: str,
    question: str,
    answer: str,
    pool: AnswerPool,
    rng: random.Random,
    count: int,
    also_true: Sequence[str] = (),
) -> tuple[str, ...] | None:
    """`answer` among at most `count` options in an order drawn by `rng`; None if no distractor can be found.

    Args:
        also_true: other texts that answer the question; no option that they contain, or that contains them, is drawn.
    """
    named = alternatives(question, answer)
    if named:
        options = list(named)
    else:
        distractors = _closed(answer, rng, count - 1)
        if not distractors:
            distractors = _from_pool(pool.like(group, question, answer), (answer, *also_true), rng, count - 1)
        if not distractors:
            return None
        options = [answer, *distractors]
    rng.shuffle(options)
    return tuple(options)


def _from_pool(tiers: Sequence[Sequence[str]], true: Sequence[str], rng: random.Random, count: int) -> list[str]:
    taken = [frozenset(words(text)) for text in true]
    found: list[str] = []
    for tier in tiers:
        for candidate in rng.sample(list(tier), len(tier)):
            parts = frozenset(words(candidate))
            if len(found) < count and parts and not any(parts <= other or other <= parts for other in taken):
                found.append(candidate)
                taken.append(parts)
    return found
