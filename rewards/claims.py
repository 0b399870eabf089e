"""What sentences claim, so that a claim counts once however it is written.

Sentences are compared as the judge sees them: NFKC, no invisible characters, case and punctuation ignored. Articles, forms of
"be" and lead-ins ("So", "I can see that") claim nothing. "a left of b" and "b right of a" are one claim, and so are "The car is
red" and "A red car". A pronoun stands for the subject before it. Boxes are equal from IoU 0.9, or within a pixel. All rules are
ours; the words are English, and other languages are compared word by word.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fgrpo.boxes import iou
from fgrpo.visible_text import latin_lookalikes
from rewards.content import visible

SAME_BOX_IOU = 0.9

Numbers = tuple[float, float, float, float]
_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*"
_FOUR = ",".join([_NUMBER] * 4)
_TWO = rf"[\[(]{_NUMBER},{_NUMBER}[\])]"
_BOX = re.compile(  # four numbers in brackets or tags, or two corners: (x1, y1), (x2, y2)
    rf"(?:<\w{{1,12}}>)?\s*[\[(]{_FOUR}[\])]\s*(?:</\w{{1,12}}>)?|<\w{{1,12}}>{_FOUR}</\w{{1,12}}>"
    rf"|(?:<\|box_start\|>)?\s*(?:[\[(]\s*)?{_TWO}\s*(?:,|-|–|to|and)?\s*{_TWO}(?:\s*[\])])?\s*(?:<\|box_end\|>)?"
)
_TOKEN = re.compile(r"(?<!\w)[+-]?\d+(?:[.,]\d+)*|\w+|[<>=≠≤≥]+")
_LABEL_A = re.compile(r"(?<=\S )A\b|^A(?= (?:is|are|was|were|has|have|and|or)\b| ?[^\w\s]|$)")  # no article
_BLANKS = re.compile(r"\s+")
_LEAD_IN = re.compile(
    r"^(?:(?:so|therefore|thus|hence|then|now|and|but|also|again|indeed|finally|overall|wait|well|yes|ok|okay|clearly|obviously"
    r"|actually|in conclusion|in summary|once (?:more|again)|as (?:mentioned|stated|said|noted|seen)(?: before| above| earlier)?"
    r"|as (?:we|you|i) can see|(?:i|we|you|one) (?:can |could )?(?:also |again |clearly )?(?:see|notice|observe|note|know)(?: that)?"
    r"|it is (?:clear|evident|obvious|true)(?: that)?|note that|remember that|to repeat)\b[\s,:]*)+"
)
_SIDE = re.compile(r"\b(?:to|on|at|towards?) the (left|right|top|bottom)(?: hand)?(?: side)?\b")
_FRONT = re.compile(r"\bin front\b")
_NOTHING = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "there",
        "also",
        "again",
        "indeed",
        "clearly",
        "very",
        "really",
        "located",
        "situated",
        "positioned",
        "colored",
        "coloured",
    ]
)
_OF_BOXES = frozenset(["at", "box", "bounding", "bbox", "coordinates", "region"])
_PRONOUNS = frozenset(["it", "its", "they", "their", "he", "his", "she", "her", "this", "that", "these", "those"])
_COPULA = re.compile(r"\b(?:is|are|was|were|has|have|had)\b")
_PAIRS = (
    *(("left", "right"), ("above", "below"), ("over", "under"), ("infront", "behind"), ("closer", "farther")),
    *(("nearer", "further"), ("bigger", "smaller"), ("larger", "lesser"), ("taller", "shorter"), ("wider", "narrower")),
)
_OPPOSITE = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}
_DETERMINERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "his",
        "her",
        "its",
        "their",
        "each",
        "every",
        "another",
        "one",
        "two",
        "three",
    ]
)
_PREPOSITIONS = frozenset(
    [
        *(
            "on",
            "in",
            "at",
            "under",
            "over",
            "behind",
            "inside",
            "outside",
            "within",
            "between",
            "against",
            "with",
            "by",
            "from",
            "to",
        ),
        *(
            "into",
            "onto",
            "upon",
            "beneath",
            "underneath",
            "around",
            "along",
            "across",
            "through",
            "toward",
            "towards",
            "of",
            "for",
        ),
        *(
            "above",
            "below",
            "left",
            "right",
            "infront",
            "beyond",
            "past",
            "atop",
            "among",
            "near",
            "beside",
            "next",
            "off",
        ),
    ]
)
_EITHER_WAY = frozenset(
    ["near", "beside", "next", "alongside", "adjacent", "opposite", "touching"]
)  # "a near b" is "b near a"
_FRONTED = re.compile(
    r"^((?:on|in|at|under|over|behind|inside|above|below|left|right|infront|beside|near|next to|beneath|between|against)\b"
    r"(?: of)? [\w' -]{1,120}?),? (?:there )?(is|are|was|were|stands?|sits?|lies|hangs?) ((?:a|an|the|one|two|three|some)\b.+)$"
)
_SUBJECT_WORDS = 2  # of a sentence without a form of "be" or "have"
_SHORT = 2  # words of a claim whose order does not matter: an object and its attribute


@dataclass(frozen=True)
class Claim:
    """What one sentence claims.

    Attributes:
        words: without boxes, in an order that is equal for equal claims.
        topic: the same regardless of word order, except that it says what relates to what: equal for "There stands the red
            car" and "The red car stands there", not for "The man holds the dog" and "The dog holds the man".
        boxes: as written, from their upper left corner to the lower right one.
    """

    words: tuple[str, ...]
    topic: Hashable
    boxes: tuple[Numbers, ...] = ()


def claims(texts: Sequence[str]) -> list[Claim]:
    """The claim of each sentence of one trace, in order."""
    out: list[Claim] = []
    subject: tuple[str, ...] = ()
    for text in texts:
        plain, boxes = _read(text)
        words = _words(plain, bool(boxes))
        if words and words[0] in _PRONOUNS:
            words = words if boxes else (*subject, *words[1:])
        else:
            subject = _subject(plain)
        ordered, has_relation = _ordered(words)
        out.append(Claim(ordered, ordered if has_relation else _topic(plain, words, bool(boxes)), boxes))
    return out


def repeated(of_trace: Sequence[Claim], earns: Sequence[bool] | None = None) -> set[int]:
    """Places of claims that were made before: in the same words, and without a new box.

    Args:
        earns: which claims hold by their own verdict; the others are neither repeated nor a first time. None: all.
    """
    known: dict[Hashable, list[Numbers]] = {}
    places = set()
    for place, claim in enumerate(of_trace):
        if earns is not None and not earns[place]:
            continue
        if claim.words not in known:
            known[claim.words] = list(claim.boxes)
            continue
        if all(_is_among(box, known[claim.words]) for box in claim.boxes):
            places.add(place)
        known[claim.words] += claim.boxes  # a repeated one too: a box that moves on slowly stays the same
    return places


def distinct(of_trace: Sequence[Claim]) -> list[int]:
    """The number of each sentence's claim, equal for sentences about one topic with equal boxes."""
    known: dict[Hashable, list[tuple[tuple[Numbers, ...], int]]] = {}
    numbers: list[int] = []
    count = 0
    for claim in of_trace:
        of_topic = known.setdefault(claim.topic, [])
        number = next((n for boxes, n in of_topic if _are_equal(boxes, claim.boxes)), None)
        if number is None:
            number, count = count, count + 1
            of_topic.append((claim.boxes, number))
        numbers.append(number)
    return numbers


def same_box(a: Numbers, b: Numbers) -> bool:
    """Whether two boxes of one frame are the same: IoU of at least 0.9, or in pixels no side more than a pixel apart."""
    if a == b or iou(a, b) >= SAME_BOX_IOU:
        return True
    in_pixels = max(map(abs, (*a, *b))) > 2
    return in_pixels and all(abs(x - y) <= 1 for x, y in zip(a, b, strict=True))


def _is_among(box: Numbers, boxes: Sequence[Numbers]) -> bool:
    return any(same_box(box, other) for other in boxes)


def _are_equal(a: Sequence[Numbers], b: Sequence[Numbers]) -> bool:
    return len(a) == len(b) and all(_is_among(box, b) for box in a) and all(_is_among(box, a) for box in b)


def _read(text: str) -> tuple[str, tuple[Numbers, ...]]:
    """The sentence without boxes and lead-ins, in lower case with plain blanks; and its boxes."""
    boxes: list[Numbers] = []

    def take(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = (float(n) for n in match.groups() if n is not None)
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        return " "

    shown = _LABEL_A.sub("label_a", _BLANKS.sub(" ", latin_lookalikes(visible(text))).strip())
    plain = _BOX.sub(take, shown).casefold().replace("’", "'").replace("n't", " not").replace("'s", " is")
    plain = _LEAD_IN.sub("", " ".join(plain.strip(" \t*_\"'([").split()))
    return _FRONTED.sub(r"\3 \2 \1", _FRONT.sub("infront", _SIDE.sub(r"\1", plain))), tuple(boxes)


def _words(plain: str, has_boxes: bool) -> tuple[str, ...]:
    words: list[str] = []
    for word in _TOKEN.findall(plain):
        is_of_relation = word in ("of", "than", "to") and bool(words) and words[-1] in _OPPOSITE
        is_said = bool(words) and words[-1] == word  # "red, red, red"
        if not (word in _NOTHING or is_of_relation or is_said or (has_boxes and word in _OF_BOXES)):
            words.append(word)
    return tuple(words)


def _topic(plain: str, words: tuple[str, ...], has_boxes: bool) -> Hashable:
    """The words by the things that they speak of: noun phrases in their order, and phrases with a preposition in any order.

    A phrase begins at a determiner or a preposition; phrases joined by "and" or "or" are one. Without two phrases the order says
    nothing, but in a sentence without determiners all of it counts.
    """
    phrases: list[tuple[str, set[str]]] = [("", set())]
    marks = 0  # determiners and prepositions that begin a phrase
    before = "and"
    tokens = _TOKEN.findall(plain)
    for word in tokens:
        if word in _PREPOSITIONS and before not in _PREPOSITIONS:
            phrases.append((word, set()))
            marks += 1
        elif word in _DETERMINERS and before not in _PREPOSITIONS:
            if before not in ("and", "or"):
                phrases.append(("", set()))
            marks += before not in ("and", "or") or not marks
        phrases[-1][1].update(_words(word, has_boxes))
        before = word
    if len(words) > _SHORT and _DETERMINERS.isdisjoint(tokens):
        return words
    if marks < 2 or not _EITHER_WAY.isdisjoint(words):
        return frozenset(words)
    nouns = tuple(frozenset(held) for preposition, held in phrases if held and not preposition)
    return nouns, frozenset((preposition, frozenset(held)) for preposition, held in phrases if held and preposition)


def _subject(plain: str) -> tuple[str, ...]:
    """The words before a form of "be" or "have", or the first ones."""
    copula = _COPULA.search(plain)
    before = _words(plain[: copula.start()], True) if copula else ()
    return before or _words(plain[copula.end() :] if copula else plain, True)[:_SUBJECT_WORDS]


def _ordered(words: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The words in the order that equal claims share, and whether they state a relation of two things."""
    places = [i for i, word in enumerate(words) if word in _OPPOSITE]
    if len(places) == 1 and 0 < places[0] < len(words) - 1:
        before, relation, after = words[: places[0]], words[places[0]], words[places[0] + 1 :]
        if before > after:
            before, relation, after = after, _OPPOSITE[relation], before
        return (*before, relation, *after), True
    return (tuple(sorted(words)) if len(words) <= _SHORT else words), bool(places)
