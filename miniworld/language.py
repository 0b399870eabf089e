"""Parses the language of the miniature world: what a question asks, and what a sentence claims.

The parser tolerates case, blanks, fillers ("so", "therefore") and text around the question (options, instructions), and never
raises. A sentence without a claim yields none. A sentence that mentions a relation, a number or a box in an unparsable form
yields the claim `unreadable`, which is false for every image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from miniworld import relations as rel
from miniworld.scene import COLORS, SHAPES

NAME = r"([a-z]+ [a-z]+)"
_NUMBER = rf"({'|'.join(rel.NUMBERS)}|\d)"
_NOUN = rf"({'|'.join(SHAPES)}|thing)"
_WORD = rf"({'|'.join(rel.AXIS_OF)})"
_COORDINATE = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"<bbox>\s*\[{','.join([_COORDINATE] * 4)}\]\s*</bbox>", re.IGNORECASE)
_IMAGE_PREFIX = re.compile(r"^(?:in|on) the (first|second) (?:picture|image),? ")
_BEHIND = re.compile(r"^seen from behind,? ")
_FILLER = re.compile(r"^(?:so|therefore|thus|hence|then|now|and|but),? ")
_BOX_CLAIM = re.compile(rf"^the {NAME} is (?:located )?at \x00$")
_REL_CLAIM = re.compile(rf"^the {NAME} is (not )?(?:to the |on the )?{_WORD}(?: of| than)? the {NAME}$")
_NEARER_CLAIM = re.compile(rf"^the {NAME} is (not )?nearer to the {NAME}(?: than (?:to )?the {NAME})?$")
_COUNT_CLAIM = re.compile(rf"^there (?:is|are) (?:only |exactly )?{_NUMBER} {_NOUN}s?$")
_EXISTS_CLAIM = re.compile(rf"^there is an? {NAME}$")
_MOVED_CLAIM = re.compile(rf"^the {NAME} moved (?:to the )?(left|right)$")
_ANSWER_CLAIM = re.compile(r"^the (?:final |correct )?answer is (?:the )?([a-z ]+)$")
_KNOWN_NAME = re.compile(rf"\b((?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)}))s?\b")
_MARKER = re.compile(rf"<bbox>|</bbox>|\b(?:{'|'.join(rel.AXIS_OF)}|nearer|moved|there (?:is|are))\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*\n+\s*")
CUE = re.compile(r"wait,? this seems off", re.IGNORECASE)  # retracts all claims before it


@dataclass(frozen=True)
class ParsedQuestion:
    """The content of a question.

    Attributes:
        family: one of `miniworld.questions.FAMILIES`.
        names: the things in the order of the text.
        options: the option words.
        axis: axis of the relation, if any.
        image_index: index of the image that the question names, if any.
        behind: whether the question is about the view from behind.
        noun: what is counted, in a count question.
    """

    family: str
    names: tuple[str, ...]
    options: tuple[str, ...]
    axis: str | None = None
    image_index: int | None = None
    behind: bool = False
    noun: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        kind: box, relation, nearer, count, exists, moved, answer, mention or unreadable.
        names: the things.
        value: the relation word, nearer thing, number word, direction or answer; a negated relation becomes its opposite.
        box: x1, y1, x2, y2 as written.
        image_index: 0, 1, or None if the sentence names no image.
        behind: whether the claim is about the view from behind.
    """

    kind: str
    names: tuple[str, ...] = ()
    value: str = ""
    box: tuple[float, ...] = ()
    image_index: int | None = None
    behind: bool = False

    def key(self) -> tuple[object, ...]:
        """Equal for equivalent claims ("a left of b", "b right of a")."""
        names, value = self.names, self.value
        if self.kind == "relation" and names[0] > names[1]:
            names, value = names[::-1], rel.OPPOSITE[value]
        return self.kind, names, value, self.box, self.image_index, self.behind


_QUESTIONS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "relation",
        re.compile(
            rf"(?:in the (first|second) picture,? )?(seen from behind,? )?is the {NAME} {_WORD} or {_WORD}"
            rf"(?: of| than)? the {NAME}\s*\?"
        ),
    ),
    ("nearer", re.compile(rf"is the {NAME} nearer to the {NAME} or the {NAME}\s*\?")),
    ("count", re.compile(rf"how many {_NOUN}s are there,? ((?:{_NUMBER}|,|or|\s)+)\?")),
    ("moved", re.compile(rf"did the {NAME} move (left|right) or (left|right)\s*\?")),
)


def normalise(text: str) -> str:
    """Lower case, single blanks."""
    return " ".join(text.lower().split())


def number_word(text: str) -> str:
    """Digits as words (`2` becomes `two`); other text is unchanged."""
    return rel.NUMBERS[int(text)] if text.isdecimal() and int(text) < len(rel.NUMBERS) else text


@lru_cache(maxsize=4096)
def parse_question(text: str) -> ParsedQuestion | None:
    """The first question of the world in `text`, or None."""
    normalized = normalise(text)
    for kind, pattern in _QUESTIONS:
        match = pattern.search(normalized)
        if not match:
            continue
        if kind == "relation":
            ordinal, behind, a, one, two, b = match.groups()
            axis = rel.AXIS_OF[one]
            image_index = rel.ORDINALS.index(ordinal) if ordinal else None
            family = "behind" if behind else "view" if ordinal else axis
            return ParsedQuestion(family, (a, b), (one, two), axis, image_index, bool(behind))
        if kind == "nearer":
            a, b, c = match.groups()
            return ParsedQuestion("nearer", (a, b, c), (b, c))
        if kind == "count":
            options = tuple(number_word(w) for w in re.findall(rf"\b{_NUMBER}\b", match.group(2)))
            return ParsedQuestion("count", (), options, noun=match.group(1))
        a, one, two = match.groups()
        return ParsedQuestion("moved", (a,), (one, two), "hrel")
    return None


def split_sentences(text: str) -> list[str]:
    """Non-empty sentences and lines of `text`."""
    return [s.strip() for s in _SENTENCE.split(text) if s.strip(" .!?\t")]


def _read(normalized: str, box: tuple[float, ...], image_index: int | None, behind: bool) -> Claim | None:
    """The claim of one lower-case sentence without prefix and full stop, in which \\x00 represents `box`."""
    if m := _BOX_CLAIM.match(normalized):
        return Claim("box", (m.group(1),), box=box, image_index=image_index, behind=behind)
    if m := _REL_CLAIM.match(normalized):
        a, negated, word, b = m.groups()
        return Claim(
            "relation", (a, b), rel.OPPOSITE[word] if negated else word, image_index=image_index, behind=behind
        )
    if m := _NEARER_CLAIM.match(normalized):
        a, negated, b, c = m.groups()
        if not negated:
            return Claim("nearer", (a, b, c) if c else (a, b), b, image_index=image_index, behind=behind)
        return Claim("nearer", (a, c, b), c, image_index=image_index, behind=behind) if c else None
    if m := _COUNT_CLAIM.match(normalized):
        return Claim("count", (m.group(2),), number_word(m.group(1)), image_index=image_index, behind=behind)
    if m := _EXISTS_CLAIM.match(normalized):
        return Claim("exists", (m.group(1),), image_index=image_index, behind=behind)
    if m := _MOVED_CLAIM.match(normalized):
        return Claim("moved", (m.group(1),), m.group(2), image_index=image_index, behind=behind)
    if m := _ANSWER_CLAIM.match(normalized):
        return Claim("answer", value=number_word(m.group(1).strip()))
    return None


def _parse_one(sentence: str) -> Claim | None:
    normalized = normalise(sentence)
    boxes = BOX.findall(normalized)
    normalized = BOX.sub("\x00", normalized).strip().rstrip(".!").rstrip()
    normalized = _FILLER.sub("", normalized)
    image_index, behind = None, False
    if m := _IMAGE_PREFIX.match(normalized):
        image_index, normalized = rel.ORDINALS.index(m.group(1)), normalized[m.end() :]
    if m := _BEHIND.match(normalized):
        behind, normalized = True, normalized[m.end() :]
    box = tuple(float(v) for v in boxes[0]) if len(boxes) == 1 else ()
    if not boxes or box:
        claim = _read(normalized, box, image_index, behind)
        if claim is not None:
            return claim
    if boxes or _MARKER.search(normalized):
        return Claim("unreadable")
    names = tuple(_KNOWN_NAME.findall(normalized))
    return Claim("mention", names, image_index=image_index) if names else None


def parse_claims(text: str) -> list[Claim]:
    """All claims of `text` (one or more sentences), in order."""
    claims = (_parse_one(s) for s in split_sentences(text))
    return [c for c in claims if c is not None]
