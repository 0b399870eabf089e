"""Questions about scenes, their true answers, and true reasoning in the form that a policy writes.

Eight families stand for the skills of the paper's seven benchmarks (Table 1): relations and counting (CV-Bench 2D), depth
and distance (CV-Bench 3D), two views (MindCube), near-identical pairs (MMVP, `pair`), another's perspective (OmniSpatial),
before and after (SAT). Answers are option words, and the options stand in the question, in random order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from miniworld import relations as rel
from miniworld.scene import BOARD, CELL, SHAPES, Scene, Thing, box_in_cell, place, sample_kinds, sample_scene

FAMILIES: tuple[str, ...] = ("hrel", "vrel", "depth", "count", "nearer", "behind", "view", "moved")
CORE: tuple[str, ...] = rel.AXES  # the families that the mini backbone is sure to learn


@dataclass(frozen=True)
class Question:
    """A question with its truth.

    `choices` are option words in the order of the text, `answer` is one of them; `scenes` has one scene a picture, in
    order; `asked` names the things asked about, whose boxes are the ground truth of the question. `picture` is the index
    of the picture that the question names, None if it names none.
    """

    family: str
    text: str
    choices: tuple[str, ...]
    answer: str
    scenes: tuple[Scene, ...]
    asked: tuple[str, ...]
    axis: str | None = None
    picture: int | None = None


def _shuffled(rng: random.Random, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(rng.sample(words, len(words)))


def _relation(rng: random.Random, axis: str) -> Question:
    scene = sample_scene(rng)
    a, b = rng.sample(scene.things, 2)
    one, two = _shuffled(rng, rel.OPTIONS[axis])
    text = f"Is the {a.name} {one} or {two}{rel.TAIL[axis]} the {b.name}?"
    answer = rel.relation(axis, a.box, b.box)
    assert answer is not None  # rows, columns and sizes are distinct
    return Question(axis, text, (one, two), answer, (scene,), (a.name, b.name), axis)


def _count(rng: random.Random) -> Question:
    scene = sample_scene(rng)
    shapes = [s for s in SHAPES if 1 <= rel.count(scene, s) <= 3]
    shape = rng.choice(["thing", *shapes]) if shapes else "thing"
    low = 2 if shape == "thing" else 1
    numbers = rel.NUMBERS[low : low + 3]
    one, two, three = numbers if rng.random() < 0.5 else numbers[::-1]
    answer = rel.NUMBERS[rel.count(scene, shape)]
    asked = tuple(t.name for t in scene.things if shape in ("thing", t.shape))
    text = f"How many {shape}s are there, {one}, {two} or {three}?"
    return Question("count", text, (one, two, three), answer, (scene,), asked)


def _nearer(rng: random.Random) -> Question:
    while True:
        scene = sample_scene(rng, 3, 4)
        a, b, c = rng.sample(scene.things, 3)
        which = rel.nearer(a.box, b.box, c.box)
        if which is not None:
            break
    text = f"Is the {a.name} nearer to the {b.name} or the {c.name}?"
    return Question("nearer", text, (b.name, c.name), (b.name, c.name)[which], (scene,), (a.name, b.name, c.name))


def _behind(rng: random.Random) -> Question:
    q = _relation(rng, "hrel")
    text = "Seen from behind, i" + q.text[1:]
    return replace(q, family="behind", text=text, answer=rel.from_behind("hrel", q.answer))


def _view(rng: random.Random) -> Question:
    axis = rng.choice(("hrel", "vrel"))
    kinds = sample_kinds(rng, rng.randint(2, 3))
    scenes = (place(rng, kinds), place(rng, kinds))
    picture = rng.randrange(2)
    a, b = rng.sample(scenes[picture].things, 2)
    one, two = _shuffled(rng, rel.OPTIONS[axis])
    answer = rel.relation(axis, a.box, b.box)
    assert answer is not None
    text = f"In the {rel.ORDINALS[picture]} picture, is the {a.name} {one} or {two}{rel.TAIL[axis]} the {b.name}?"
    return Question("view", text, (one, two), answer, scenes, (a.name, b.name), axis, picture)


def _moved(rng: random.Random) -> Question:
    before = sample_scene(rng, 2, BOARD - 1)
    index = rng.randrange(len(before.things))
    thing = before.things[index]
    row, column = thing.cell
    free = [c for c in range(BOARD) if c not in {t.cell[1] for t in before.things}]
    target = rng.choice(free)
    moved = replace(thing, box=box_in_cell(rng, row, target, thing.size))
    after = Scene((*before.things[:index], moved, *before.things[index + 1 :]))
    one, two = _shuffled(rng, rel.OPTIONS["hrel"])
    answer = "right" if target > column else "left"
    text = f"Did the {thing.name} move {one} or {two}?"
    return Question("moved", text, (one, two), answer, (before, after), (thing.name,), "hrel")


def make(family: str, rng: random.Random) -> Question:
    """A random question of `family` (one of FAMILIES, else ValueError) with freshly drawn scenes."""
    if family in rel.AXES:
        return _relation(rng, family)
    makers = {"count": _count, "nearer": _nearer, "behind": _behind, "view": _view, "moved": _moved}
    if family not in makers:
        raise ValueError(f"no family of questions is called {family!r}; there are {', '.join(FAMILIES)}")
    return makers[family](rng)


def pair(family: str, rng: random.Random) -> tuple[Question, Question]:
    """Two questions with the same text and opposite answers about two pictures that differ in two things alone, which
    have changed places along the asked axis (as MMVP pairs do). `family` is hrel or vrel."""
    first = _relation(rng, family)
    a, b = (first.scenes[0].by_name(name) for name in first.asked)
    assert a is not None and b is not None
    dx = (b.cell[1] - a.cell[1]) * CELL if family == "hrel" else 0
    dy = (b.cell[0] - a.cell[0]) * CELL if family == "vrel" else 0

    def shift(t: Thing) -> Thing:
        sign = 1 if t.name == a.name else -1 if t.name == b.name else 0
        x1, y1, x2, y2 = t.box
        return replace(t, box=(x1 + sign * dx, y1 + sign * dy, x2 + sign * dx, y2 + sign * dy))

    scene = Scene(tuple(shift(t) for t in first.scenes[0].things))
    second = replace(first, scenes=(scene,), answer=rel.OPPOSITE[first.answer])
    return first, second


def box_text(box: tuple[int, int, int, int]) -> str:
    return f"<bbox>[{','.join(str(v) for v in box)}]</bbox>"


def box_sentence(name: str, box: tuple[int, int, int, int], picture: int | None = None) -> str:
    """`The red circle is at <bbox>[4,8,20,24]</bbox>.`, with the picture named if `picture` is 0 or 1."""
    start = "The" if picture is None else f"In the {rel.ORDINALS[picture]} picture, the"
    return f"{start} {name} is at {box_text(box)}."


def conclusion(q: Question, answer: str) -> str:
    """The statement that says `answer` (one of `q.choices`, true or not)."""
    first = q.asked[0] if q.asked else ""
    if q.family == "count":
        noun = q.text.split()[2].removesuffix("s")
        return f"There is one {noun}." if answer == "one" else f"There are {answer} {noun}s."
    if q.family == "nearer":
        return f"The {first} is nearer to the {answer}."
    if q.family == "moved":
        return f"The {first} moved {answer}."
    lead = {"behind": "Seen from behind, the", "view": f"In the {rel.ORDINALS[q.picture or 0]} picture, the"}
    assert q.axis is not None
    return f"{lead.get(q.family, 'The')} {first} is {answer}{rel.TAIL[q.axis]} the {q.asked[1]}."


def steps(q: Question) -> list[str]:
    """True reasoning: a box sentence for each thing asked about (in each picture that matters), then the statement."""
    if q.family == "moved":
        pictures: tuple[int | None, ...] = (0, 1)
    else:
        pictures = (q.picture,)
    sentences = []
    for picture in pictures:
        scene = q.scenes[picture or 0]
        for name in q.asked:
            thing = scene.by_name(name)
            assert thing is not None
            sentences.append(box_sentence(name, thing.box, picture))
    return [*sentences, conclusion(q, q.answer)]


def write_trace(sentences: list[str], answer: str) -> str:
    """The text a policy writes: one step a line inside <think>, then the answer."""
    return "<think>" + "\n".join(sentences) + f"</think><answer>{answer}</answer>"


def trace(q: Question) -> str:
    """The canonical true trace of `q`."""
    return write_trace(steps(q), q.answer)
