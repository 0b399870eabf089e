"""Traces with planted errors, and the verdict that the scene dictates for each: the answer key of judges.

`plant(kind, question, rng)` writes reasoning about a generated scene with exactly one thing wrong (or nothing, for the
controls), together with the label of every sentence and whether the answer follows. Labels come from how the trace was made
and from plain arithmetic on the scene's boxes, never from `miniworld.oracle`, which is one of the judges that is checked by it
(tests/miniworld/test_oracle.py). Appendix B.3 validates judges by agreement among them; here a true error rate is known.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from miniworld import questions as qs
from miniworld import relations as rel
from miniworld.scene import COLORS, PIXELS, SHAPES, UNIT, BoxPx, Scene, Thing

# IoU [from, below) of a box with the truth: a box sentence is true from 0.3 on, as the oracle has it
CLOSE, NEAR, FAR = (0.3, 1.0), (0.01, 0.3), (0.0, 0.0)
CORRECT, INCORRECT, SKIP = "CORRECT", "INCORRECT", "SKIP"
CUE = ("Wait, this seems off.", "Let's try something else.")
FILLER = (
    "Let me think about this step by step.",
    "I need to be careful here.",
    "First, I should understand what is asked.",
    "Hmm, this takes some thought.",
    "So I will go through it slowly.",
    "Now I can come to a decision.",
    "That should be enough.",
)


@dataclass(frozen=True)
class Planted:
    """A trace with its answer key: `labels` has one of CORRECT, INCORRECT, SKIP for each of `sentences`, `consistent` says
    whether `answer` follows from them. `places` are the sentences that the kind is about."""

    kind: str
    question: qs.Question
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    answer: str
    consistent: bool
    places: tuple[int, ...]

    @property
    def think(self) -> str:
        return "\n".join(self.sentences)

    @property
    def text(self) -> str:
        """The whole response."""
        return qs.write_trace(list(self.sentences), self.answer)


Draft = tuple[list[str], list[str], str, bool, list[int]]  # sentences, labels, answer, consistent, places


def plant(kind: str, question: qs.Question, rng: random.Random) -> Planted:
    """A trace of `kind` (one of ERRORS or CONTROLS, else KeyError) about `question`; the same `rng` gives the same trace."""
    sentences, labels, answer, consistent, places = _MAKERS[kind](question, rng)
    return Planted(kind, question, tuple(sentences), tuple(labels), answer, consistent, tuple(places))


def _true(q: qs.Question, rng: random.Random) -> Draft:
    said = qs.steps(q)
    return said, [CORRECT] * len(said), q.answer, True, list(range(len(said)))


def _replaced(q: qs.Question, place: int, sentence: str, consistent: bool = True) -> Draft:
    """The true trace with one sentence exchanged for a false one."""
    said, labels, answer, _, _ = _true(q, random.Random())
    said[place], labels[place] = sentence, INCORRECT
    return said, labels, answer, consistent, [place]


def _wrong_object(q: qs.Question, rng: random.Random) -> Draft:
    """Another thing in the place of the one that is meant: one that is not there, or (with this box) another that is."""
    place, name, picture, box = rng.choice(_boxed(q))
    scene = q.scenes[picture or 0]
    colors = [c for c in COLORS if all(c != t.color for t in scene.things)]
    absent = f"{rng.choice(colors)} {rng.choice(SHAPES)}"
    if (
        q.family != "count" and rng.random() < 0.3
    ):  # in the conclusion, which is then about something that was not asked
        said = qs.conclusion(q, q.answer)
        return _replaced(q, len(qs.steps(q)) - 1, said.replace(q.asked[0], absent), consistent=False)
    others = [t.name for t in scene.things if t.name != name]
    return _replaced(q, place, qs.box_sentence(rng.choice([absent, *others]), box, picture))


def _wrong_attribute(q: qs.Question, rng: random.Random) -> Draft:
    """The colour or the shape of the thing that is meant."""
    place, name, picture, box = rng.choice(_boxed(q))
    color, shape = name.split()
    there = {t.name for t in q.scenes[picture or 0].things}
    names = [f"{c} {shape}" for c in COLORS if c != color] + [f"{color} {s}" for s in SHAPES if s != shape]
    return _replaced(q, place, qs.box_sentence(rng.choice([n for n in names if n not in there]), box, picture))


def _wrong_relation(q: qs.Question, rng: random.Random) -> Draft:
    """The deciding statement (relation, number, direction) is false and the answer follows it; or a false relation aside."""
    if len(q.asked) >= 2 and q.family != "count" and rng.random() < 0.3:
        said, labels, answer, _, _ = _true(q, rng)
        axis = rng.choice([a for a in rel.AXES if a != q.axis])
        a, b = (_thing(q.scenes[q.picture or 0], name) for name in q.asked[:2])
        lead = "The" if q.picture is None else f"In the {rel.ORDINALS[q.picture]} picture, the"
        word = rel.OPPOSITE[_relation(axis, a.box, b.box)]
        said.insert(-1, f"{lead} {a.name} is {word}{rel.TAIL[axis]} the {b.name}.")
        labels.insert(-1, INCORRECT)
        return said, labels, answer, True, [len(said) - 2]
    word = _other(q, rng)
    said, labels, _, _, places = _replaced(q, len(qs.steps(q)) - 1, qs.conclusion(q, word))
    return said, labels, word, True, places


def _wrong_box(q: qs.Question, rng: random.Random) -> Draft:
    """Another thing's box, one that overlaps too little, a reversed or an empty one, one outside the picture."""
    place, name, picture, box = rng.choice(_boxed(q))
    x1, y1, x2, y2 = box
    others = [t.box for t in q.scenes[picture or 0].things if t.name != name]
    broken = [(x2, y2, x1, y1), (x1, y1, x1, y1), (x1, y1, x2, y1), (x1 + PIXELS, y1, x2 + PIXELS, y2)]
    wrong = [_moved(rng, box, *NEAR), _moved(rng, box, *FAR), rng.choice(others), rng.choice(broken)]
    return _replaced(q, place, qs.box_sentence(name, rng.choice(wrong), picture))


def _flipped_answer(q: qs.Question, rng: random.Random) -> Draft:
    said, labels, _, _, places = _true(q, rng)
    return said, labels, _other(q, rng), False, places


def _repeated_claim(q: qs.Question, rng: random.Random) -> Draft:
    """A claim made again without new evidence: a box, or the conclusion in the same or in other words."""
    said, labels, answer, _, _ = _true(q, rng)
    last = said[-1]
    again = [last, f"So, {last[0].lower()}{last[1:]}", *said[:-1]]
    if len(q.scenes) == 1 and q.family != "behind":
        again.append(f"In the first picture, {last[0].lower()}{last[1:]}")
    if q.family == "nearer":
        again.append(f"{last[:-1]} than the {_other(q, rng)}.")
    if q.axis is not None and len(q.asked) == 2:  # its converse
        again.append(qs.conclusion(replace(q, asked=q.asked[::-1]), rel.OPPOSITE[q.answer]))
    said, labels = [*said, rng.choice(again)], [*labels, INCORRECT]
    if q.family != "count" and rng.random() < 0.2:  # a wrong box in between is no evidence
        _, name, picture, box = rng.choice(_boxed(q))
        said.insert(-1, qs.box_sentence(name, _moved(rng, box, *FAR), picture))
        labels.insert(-1, INCORRECT)
    return said, labels, answer, True, [len(said) - 1]


def _pure_filler(q: qs.Question, rng: random.Random) -> Draft:
    said = rng.sample(FILLER, rng.randint(1, 4))
    return said, [SKIP] * len(said), q.answer, False, list(range(len(said)))


def _no_conclusion(q: qs.Question, rng: random.Random) -> Draft:
    said, labels, answer, _, _ = _true(q, rng)
    return said[:-1], labels[:-1], answer, False, [len(said) - 2]


def _contradiction(q: qs.Question, rng: random.Random) -> Draft:
    """A true and a false conclusion, in either order, and nothing that settles it."""
    said, labels, answer, _, _ = _true(q, rng)
    false = qs.conclusion(q, _other(q, rng))
    at = len(said) - rng.randrange(2)
    said.insert(at, false)
    labels.insert(at, INCORRECT)
    return said, labels, answer, False, [at]


def _imprecise_box(q: qs.Question, rng: random.Random) -> Draft:
    """True all the same: a box that overlaps enough."""
    place, name, picture, box = rng.choice(_boxed(q))
    said, labels, answer, _, _ = _true(q, rng)
    said[place] = qs.box_sentence(name, _moved(rng, box, *CLOSE), picture)
    return said, labels, answer, True, [place]


def _repeated_with_evidence(q: qs.Question, rng: random.Random) -> Draft:
    """True all the same: the conclusion again, after a new box of one of its things."""
    said, labels, answer, _, _ = _true(q, rng)
    subject = q.asked[0]
    _, name, picture, box = rng.choice([b for b in _boxed(q) if b[1] == subject])
    better = qs.box_sentence(name, _moved(rng, box, *CLOSE), picture)
    if q.family == "count":  # its conclusion names no thing: where one is, is said again, otherwise
        return [*said, better], [*labels, CORRECT], answer, True, [len(said)]
    extra = [better, said[-1]]
    return [*said, *extra], [*labels, CORRECT, CORRECT], answer, True, [len(said) + 1]


def _corrected(q: qs.Question, rng: random.Random) -> Draft:
    """A false conclusion, taken back, then the true one: what counts for consistency is where it ends."""
    said, labels, answer, _, _ = _true(q, rng)
    false = qs.conclusion(q, _other(q, rng))
    sentences = [*said[:-1], false, *CUE, said[-1]]
    return sentences, [*labels[:-1], INCORRECT, SKIP, SKIP, CORRECT], answer, True, [len(said) - 1]


_ERRORS: dict[str, Callable[[qs.Question, random.Random], Draft]] = {
    "wrong_object": _wrong_object,
    "wrong_attribute": _wrong_attribute,
    "wrong_relation": _wrong_relation,
    "wrong_box": _wrong_box,
    "flipped_answer": _flipped_answer,
    "repeated_claim": _repeated_claim,
    "pure_filler": _pure_filler,
    "no_conclusion": _no_conclusion,
    "contradiction": _contradiction,
}
_CONTROLS: dict[str, Callable[[qs.Question, random.Random], Draft]] = {
    "true": _true,
    "imprecise_box": _imprecise_box,
    "repeated_with_evidence": _repeated_with_evidence,
    "corrected": _corrected,
}
_MAKERS = {**_ERRORS, **_CONTROLS}
ERRORS, CONTROLS = tuple(_ERRORS), tuple(_CONTROLS)


def _boxed(q: qs.Question) -> list[tuple[int, str, int | None, BoxPx]]:
    """(place, thing's name, picture as the sentence names it, box) of each box sentence of the true trace."""
    pictures: tuple[int | None, ...] = (0, 1) if q.family == "moved" else (q.picture,)
    pairs = [(picture, name) for picture in pictures for name in q.asked]
    return [(i, n, p, _thing(q.scenes[p or 0], n).box) for i, (p, n) in enumerate(pairs)]


def _thing(scene: Scene, name: str) -> Thing:
    (found,) = [t for t in scene.things if t.name == name]
    return found


def _other(q: qs.Question, rng: random.Random) -> str:
    return rng.choice([c for c in q.choices if c != q.answer])


def _relation(axis: str, a: BoxPx, b: BoxPx) -> str:
    """How `a` lies to `b`: by left edge plus right edge, upper plus lower edge, or side (no two things share them)."""
    if axis == "hrel":
        return "left" if a[0] + a[2] < b[0] + b[2] else "right"
    if axis == "vrel":
        return "above" if a[1] + a[3] < b[1] + b[3] else "below"
    return "closer" if a[2] - a[0] > b[2] - b[0] else "farther"


def _moved(rng: random.Random, box: BoxPx, least: float, below: float) -> BoxPx:
    """`box` at another place of the grid inside the picture, whose IoU with `box` is in [least, below); both 0: none."""
    x1, y1, x2, y2 = box
    side = x2 - x1  # boxes of the world are square
    while True:
        reach = PIXELS if below == 0 else side
        dx, dy = (rng.randrange(-reach, reach + 1, UNIT) for _ in range(2))
        shared = max(0, side - abs(dx)) * max(0, side - abs(dy))
        overlap = shared / (2 * side * side - shared)
        inside = 0 <= x1 + dx <= PIXELS - side and 0 <= y1 + dy <= PIXELS - side
        if inside and (least <= overlap < below or overlap == below == 0):
            return x1 + dx, y1 + dy, x2 + dx, y2 + dy
