"""Reads the language of the miniature world: what a question asks, and what a sentence claims.

Tolerant of case, blanks, fillers ("so", "therefore") and text around the question (options, instructions); never raises
on any text. A sentence that claims nothing gives no claims; one that speaks of a relation, a number or a box in a way
that cannot be read gives the claim `unreadable`, which no picture bears out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from miniworld import relations as rel
from miniworld.scene import COLORS, SHAPES

NAME = r"([a-z]+ [a-z]+)"
_NUMBER = rf"({'|'.join(rel.NUMBERS)}|\d)"
_NOUN = rf"({'|'.join(SHAPES)}|thing)"
_WORD = rf"({'|'.join(rel.AXIS_OF)})"
_COORDINATE = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"<bbox>\s*\[{','.join([_COORDINATE] * 4)}\]\s*</bbox>", re.IGNORECASE)
_PICTURE = re.compile(r"^(?:in|on) the (first|second) (?:picture|image),? ")
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
CUE = re.compile(r"wait,? this seems off", re.IGNORECASE)  # takes back what was said before it


@dataclass(frozen=True)
class Asked:
    """What a question asks. `names` are the things in the order of the text; `options` its option words."""

    family: str
    names: tuple[str, ...]
    options: tuple[str, ...]
    axis: str | None = None
    picture: int | None = None
    behind: bool = False
    noun: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim. `kind`: box, relation, nearer, count, exists, moved, answer, mention or unreadable.

    `names`: the things; `value`: the relation word, nearer thing, number word, direction or answer, with a negated
    relation turned into its opposite; `box`: x1, y1, x2, y2 as written; `picture`: 0, 1 or None where none is named.
    """

    kind: str
    names: tuple[str, ...] = ()
    value: str = ""
    box: tuple[float, ...] = ()
    picture: int | None = None
    behind: bool = False

    def key(self) -> tuple[object, ...]:
        """Equal for claims that say the same thing ("a left of b", "b right of a")."""
        names, value = self.names, self.value
        if self.kind == "relation" and names[0] > names[1]:
            names, value = names[::-1], rel.OPPOSITE[value]
        return self.kind, names, value, self.box, self.picture, self.behind


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
    """`2` becomes `two`; words stay."""
    return rel.NUMBERS[int(text)] if text.isdecimal() and int(text) < len(rel.NUMBERS) else text


def parse_question(text: str) -> Asked | None:
    """What the first question of the world in `text` asks, or None if there is none."""
    plain = normalise(text)
    for kind, pattern in _QUESTIONS:
        found = pattern.search(plain)
        if not found:
            continue
        if kind == "relation":
            ordinal, behind, a, one, two, b = found.groups()
            axis = rel.AXIS_OF[one]
            picture = rel.ORDINALS.index(ordinal) if ordinal else None
            family = "behind" if behind else "view" if ordinal else axis
            return Asked(family, (a, b), (one, two), axis, picture, bool(behind))
        if kind == "nearer":
            a, b, c = found.groups()
            return Asked("nearer", (a, b, c), (b, c))
        if kind == "count":
            options = tuple(number_word(w) for w in re.findall(rf"\b{_NUMBER}\b", found.group(2)))
            return Asked("count", (), options, noun=found.group(1))
        a, one, two = found.groups()
        return Asked("moved", (a,), (one, two), "hrel")
    return None


def split_sentences(text: str) -> list[str]:
    """Sentences and lines of `text`, without empty ones."""
    return [s.strip() for s in _SENTENCE.split(text) if s.strip(" .!?\t")]


def _read(plain: str, box: tuple[float, ...], picture: int | None, behind: bool) -> Claim | None:
    """The claim of one lower-case sentence without lead and full stop, in which \\x00 stands for `box`."""
    if m := _BOX_CLAIM.match(plain):
        return Claim("box", (m.group(1),), box=box, picture=picture, behind=behind)
    if m := _REL_CLAIM.match(plain):
        a, negated, word, b = m.groups()
        return Claim("relation", (a, b), rel.OPPOSITE[word] if negated else word, picture=picture, behind=behind)
    if m := _NEARER_CLAIM.match(plain):
        a, negated, b, c = m.groups()
        if not negated:
            return Claim("nearer", (a, b, c) if c else (a, b), b, picture=picture, behind=behind)
        return Claim("nearer", (a, c, b), c, picture=picture, behind=behind) if c else None
    if m := _COUNT_CLAIM.match(plain):
        return Claim("count", (m.group(2),), number_word(m.group(1)), picture=picture, behind=behind)
    if m := _EXISTS_CLAIM.match(plain):
        return Claim("exists", (m.group(1),), picture=picture, behind=behind)
    if m := _MOVED_CLAIM.match(plain):
        return Claim("moved", (m.group(1),), m.group(2), picture=picture, behind=behind)
    if m := _ANSWER_CLAIM.match(plain):
        return Claim("answer", value=number_word(m.group(1).strip()))
    return None


def _parse_one(sentence: str) -> Claim | None:
    plain = normalise(sentence)
    boxes = BOX.findall(plain)
    plain = BOX.sub("\x00", plain).strip().rstrip(".!").rstrip()
    plain = _FILLER.sub("", plain)
    picture, behind = None, False
    if m := _PICTURE.match(plain):
        picture, plain = rel.ORDINALS.index(m.group(1)), plain[m.end() :]
    if m := _BEHIND.match(plain):
        behind, plain = True, plain[m.end() :]
    box = tuple(float(v) for v in boxes[0]) if len(boxes) == 1 else ()
    if not boxes or box:
        claim = _read(plain, box, picture, behind)
        if claim is not None:
            return claim
    if boxes or _MARKER.search(plain):
        return Claim("unreadable")
    names = tuple(_KNOWN_NAME.findall(plain))
    return Claim("mention", names, picture=picture) if names else None


def parse_claims(text: str) -> list[Claim]:
    """All claims of `text` (one sentence or several), in order."""
    claims = (_parse_one(s) for s in split_sentences(text))
    return [c for c in claims if c is not None]
