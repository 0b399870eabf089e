"""Turns free-form answers into multiple choice, deterministically, with plausible distractors of the same kind.

Distractors come from, in this order: the alternatives that the question names ("left or right of"), yes and no, closed kinds of
words (opposites, colours, neighbouring numbers), and answers to similar questions of the same data set. Of a sentence only the
part that answers the question is replaced (`data_curation.answer_part`). The paper says that all data is multiple choice (Section
3.1) but not how; all of this is ours. `data_curation.shortcuts` measures what the options give away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_curation.answer_part import FUNCTION, Part, essence, overlap, part_of, stem

MAX_WORDS = 8  # a longer answer is a sentence, not an option
MAX_DIGITS = 30  # longer digit strings are codes, not numbers with neighbours
PER_KIND = 64  # answers stored per kind of question
MAX_KINDS = 20_000  # kinds stored per data set
_PAIRS = (
    "yes no", "true false", "left right", "above below", "top bottom", "up down", "front back", "behind front",
    "closer farther", "near far", "inside outside", "big small", "large little", "tall short", "long short", "open closed",
    "on off", "male female", "man woman", "boy girl", "indoors outdoors", "day night", "old young", "wet dry", "full empty",
)  # fmt: skip
OPPOSITES: dict[str, str] = {}
for _one, _two in (pair.split() for pair in _PAIRS):
    OPPOSITES.setdefault(_one, _two)
    OPPOSITES.setdefault(_two, _one)
TURNS = frozenset(
    ("left", "right", "above", "below", "top", "bottom", "inside", "outside", "indoors", "outdoors")
)  # words whose opposite fits the same place of a sentence
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
_IS_WORD = re.compile(_WORD)
_TOKEN = re.compile(rf"{_WORD}|[^\s\w'-]")
_ARTICLE = r"(?:to the |on the |in the |at the |the |an? )?"


def clean(answer: str) -> str:
    """An answer with single spaces and without its final full stop."""
    return " ".join(answer.split()).rstrip(".").rstrip()


def core(question: str, answer: str) -> str:
    """`clean(answer)`, reduced to the word that decides where the rest would give it away (`answer_part.essence`)."""
    return essence(question, clean(answer), ("one", "1"))


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text."""
    return tuple(re.findall(_WORD, text.lower()))


@dataclass
class AnswerPool:
    """Answers collected in a first pass over a data set, by kind of question; bounded, in order of appearance."""

    _kinds: dict[tuple[object, ...], list[str]] = field(default_factory=dict)

    def add(self, group: str, question: str, answer: str) -> None:
        """Store an answer of `group` (a data set, or a part of one): of a sentence the part that answers the question."""
        answer = core(question, answer)
        if not answer or len(words(answer)) > MAX_WORDS:
            return
        part = _part(question, answer)
        if part is None or _is_closed(part.text.lower()):
            return  # closed kinds have their own distractors and would be implausible elsewhere
        text = part.text if part.form in ("", "none") else part.text[:1].lower() + part.text[1:]
        for kind in _kinds(group, question, part):
            if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
                continue
            known = self._kinds.setdefault(kind, [])
            if len(known) < PER_KIND and text not in known:
                known.append(text)

    def like(self, group: str, question: str, part: Part) -> list[list[str]]:
        """Answers of the same kind and form, from the narrowest kind to the widest."""
        return [self._kinds.get(kind, []) for kind in _kinds(group, question, part)]


def _part(question: str, answer: str) -> Part | None:
    return part_of(question, answer, (NUMBERS, COLORS), TURNS)


def _kinds(group: str, question: str, part: Part) -> tuple[tuple[object, ...], ...]:
    question_words, length = words(question), min(3, len(words(part.text)))
    head, last = question_words[:2], question_words[-1:]
    form = (group, part.form)
    topic = next((stem(word) for word in question_words if word not in FUNCTION), "")
    return (
        (form, head, last, length),
        (form, head, last),
        (form, "topic", topic),  # "weather", "animal"
        (form, head, length),
        (form, length),
    )


def alternatives(question: str, answer: str) -> tuple[str, ...]:
    """The alternatives that `question` names if `answer` is one of them ("left or right", "one, two or three"), else ().

    Each alternative has as many words as the answer; leading articles are dropped. Items of a list before the last two count
    only if they belong to the answer's closed kind, because "the car, red or blue" has the same form.
    """
    length = len(words(answer))
    if length == 0:
        return ()
    lower = answer.lower()
    kind = _closed_kind(lower)
    tokens = _TOKEN.findall(question)
    end = 0  # of the alternatives before: a word belongs to one list only
    for place, token in enumerate(tokens):
        if token.lower() != "or" or place < end:
            continue
        listed = _items_before(tokens, end, place, length)
        last, after = _item_after(tokens, place + 1, length)
        if not listed or last is None:
            continue
        end = after
        options = [item for item in listed[:-1] if kind is not None and item in kind] + [listed[-1], last]
        if lower in options and len(set(options)) == len(options):
            return tuple(answer if option == lower else option for option in options)
    return ()


def _items_before(tokens: Sequence[str], start: int, end: int, length: int) -> list[str]:
    """The items of `length` words, separated by commas, that end at token `end` ("the car, red" before "or")."""
    items: list[str] = []
    end -= 1 if end > start and tokens[end - 1] == "," else 0
    while end - length >= start and all(_IS_WORD.fullmatch(token) for token in tokens[end - length : end]):
        items.insert(0, " ".join(tokens[end - length : end]).lower())
        before = end - length
        article = next((n for n in (2, 1) if before - n >= start and _is_article(tokens[before - n : before])), 0)
        end = next((at for at in (before - article, before) if at > start and tokens[at - 1] == ","), 0) - 1
        if end < start:
            break
    return items


def _item_after(tokens: Sequence[str], start: int, length: int) -> tuple[str | None, int]:
    """(the item of `length` words at `start`, where it ends); (None, start) if there is none. An article is left out."""
    article = next((n for n in (2, 1) if _is_article(tokens[start : start + n])), 0)
    for begin in (start + article, start):
        item = tokens[begin : begin + length]
        if len(item) == length and all(_IS_WORD.fullmatch(token) for token in item):
            return " ".join(item).lower(), begin + length
    return None, start


def _is_article(tokens: Sequence[str]) -> bool:
    return bool(tokens) and re.fullmatch(_ARTICLE, " ".join(tokens).lower() + " ") is not None


def _closed_kind(lower: str) -> Sequence[str] | None:
    return next((kind for kind in (NUMBERS, COLORS) if lower in kind), None)


def _is_closed(lower: str) -> bool:
    return lower in OPPOSITES or lower.isdecimal() or _closed_kind(lower) is not None


def _closed(answer: str, rng: random.Random, count: int, least: int = 0) -> list[str]:
    """Distractors from a closed kind of words, numbers from `least` on; [] if the answer belongs to none."""
    lower = answer.lower()
    if lower in OPPOSITES:
        distractors = [OPPOSITES[lower]]
    elif lower in COLORS:
        others = [c for c in COLORS if c != lower]
        distractors = rng.sample(others, min(count, len(others)))
    elif lower in NUMBERS or (lower.isdecimal() and len(lower) <= MAX_DIGITS):
        value = NUMBERS.index(lower) if lower in NUMBERS else int(lower)
        distractors = [
            NUMBERS[v] if lower in NUMBERS and v < len(NUMBERS) else str(v)
            for v in _neighbours(value, rng, count, least)
        ]
    else:
        return []
    return [f.capitalize() if answer[:1].isupper() else f for f in distractors]


def _neighbours(value: int, rng: random.Random, count: int, least: int) -> list[int]:
    """`count` numbers near `value`, a random number of them below it: its rank among the options says nothing."""
    lower = range(max(least, value - count), value)
    below = rng.randint(0, len(lower))
    return rng.sample(lower, below) + rng.sample(range(value + 1, value + count + 1), count - below)


def make_choices(
    group: str,
    question: str,
    answer: str,
    pool: AnswerPool,
    rng: random.Random,
    count: int,
    also_true: Sequence[str] = (),
) -> tuple[str, ...] | None:
    """`answer` among at most `count` options, shuffled by `rng`; None without any distractor.

    The options of a sentence differ in the part that answers the question.

    Args:
        group: the data set, or a part of one.
        pool: answers of the data set, by kind of question.
        also_true: other correct answers; no distractor is drawn that contains one of them or is contained in one.
    """
    named = alternatives(question, answer) or _named_inside(question, answer)
    if named:
        options = list(named)
    else:
        distractors = _distractors(group, question, answer, pool, rng, count - 1, also_true)
        if not distractors:
            return None
        options = [answer, *distractors]
    rng.shuffle(options)
    return tuple(options)


def _named_inside(question: str, answer: str) -> tuple[str, ...]:
    """`answer` with each of the alternatives that the question names in the place of the one that it states, else ()."""
    found = list(re.finditer(_WORD, answer))
    for length in range(min(3, len(found) - 1), 0, -1):
        for first, last in zip(reversed(found[: len(found) - length + 1]), reversed(found[length - 1 :]), strict=True):
            part = Part(answer[: first.start()], answer[first.start() : last.end()], answer[last.end() :])
            others = [o for o in alternatives(question, part.text) if o != part.text]
            if (
                others
                and not FUNCTION.intersection(words(" ".join([part.text, *others])))
                and not any(set(words(o)) <= set(words(part.before + " " + part.after)) for o in others)
            ):
                return (answer, *(part.with_text(other) for other in others))
    return ()


def _distractors(
    group: str,
    question: str,
    answer: str,
    pool: AnswerPool,
    rng: random.Random,
    count: int,
    also_true: Sequence[str],
) -> list[str]:
    """At most `count` wrong answers of the same form."""
    part = _part(question, answer)
    if part is None:
        return []
    lower = frozenset(text.lower() for text in also_true)
    least = 0 if part.is_entire else 2  # not "There are one hats"
    texts = [text for text in _closed(part.text, rng, count, least) if text.lower() not in lower]
    if not texts:
        tiers = pool.like(group, question, part)
        texts = _from_pool(tiers, question, (part.text, *also_true), rng, count)
    options = [part.with_text(text) for text in texts]
    return [option for option in options if option != answer]


def _from_pool(
    tiers: Sequence[Sequence[str]], question: str, true: Sequence[str], rng: random.Random, count: int
) -> list[str]:
    """Candidates that are no answer, and share as many words with the question as the answer (`true[0]`), if there are any."""
    excluded = [frozenset(words(text)) for text in true]
    shared = overlap(question, true[0])
    distractors: list[str] = []
    for tier in tiers:
        drawn = rng.sample(list(tier), len(tier))
        for candidate in sorted(drawn, key=lambda text: overlap(question, text) != shared):
            candidate_words = frozenset(words(candidate))
            if (
                len(distractors) < count
                and candidate_words
                and overlap(question, candidate) >= shared
                and not any(candidate_words <= other or other <= candidate_words for other in excluded)
            ):
                distractors.append(candidate)
                excluded.append(candidate_words)
    return distractors
