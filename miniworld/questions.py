"""Questions about scenes with their true answers, and true reasoning in a policy's output format.

Eight families represent the skills of the paper's seven benchmarks (Table 1): relations and counting (CV-Bench 2D), depth and
distance (CV-Bench 3D), two views (MindCube), near-identical pairs (MMVP, `pair`), another perspective (OmniSpatial), before
and after (SAT). Answers are option words; the question contains the options in random order.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

from miniworld import relations as rel
from miniworld.scene import BOARD, CELL, SHAPES, Scene, Thing, box_in_cell, place, sample_kinds, sample_scene

FAMILIES: tuple[str, ...] = ("hrel", "vrel", "depth", "count", "nearer", "behind", "view", "moved")
CORE: tuple[str, ...] = rel.AXES  # the families that the mini backbone learns reliably


@dataclass(frozen=True)
class Question:
    """A question with its ground truth.

    Attributes:
        family: one of FAMILIES.
        text: the question.
        choices: option words in the order of the text.
        answer: the correct one of `choices`.
        scenes: one scene per image, in order.
        targets: names of the things that the question is about; their boxes are its ground truth.
        axis: axis of the relation, if the question is about one.
        image_index: index of the image that the question names; None if it names none.
    """

    family: str
    text: str
    choices: tuple[str, ...]
    answer: str
    scenes: tuple[Scene, ...]
    targets: tuple[str, ...]
    axis: str | None = None
    image_index: int | None = None


def _shuffled(rng: random.Random, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(rng.sample(words, len(words)))


def _relation(rng: random.Random, scenes: tuple[Scene, ...], axis: str) -> Question:
    a, b = rng.sample(scenes[0].things, 2)
    one, two = _shuffled(rng, rel.OPTIONS[axis])
    text = f"Is the {a.name} {one} or {two}{rel.TAIL[axis]} the {b.name}?"
    answer = rel.relation(axis, a.box, b.box)
    assert answer is not None  # rows, columns and sizes are distinct
    return Question(axis, text, (one, two), answer, scenes, (a.name, b.name), axis)


def _count(rng: random.Random, scenes: tuple[Scene, ...]) -> Question:
    scene = scenes[0]
    shapes = [s for s in SHAPES if 1 <= rel.count(scene, s) <= 3]
    shape = rng.choice(["thing", *shapes])
    low = 2 if shape == "thing" else 1
    numbers = rel.NUMBERS[low : low + 3]
    one, two, three = numbers if rng.random() < 0.5 else numbers[::-1]
    answer = rel.NUMBERS[rel.count(scene, shape)]
    targets = tuple(t.name for t in scene.things if shape in ("thing", t.shape))
    text = f"How many {shape}s are there, {one}, {two} or {three}?"
    return Question("count", text, (one, two, three), answer, scenes, targets)


def _nearer(rng: random.Random, scenes: tuple[Scene, ...]) -> Question:
    triples = [
        (a, b, c)
        for a, b, c in itertools.permutations(scenes[0].things, 3)
        if rel.nearer(a.box, b.box, c.box) is not None
    ]
    if not triples:
        raise ValueError("the scene has no three things at different distances")
    a, b, c = rng.choice(triples)
    answer = (b.name, c.name)[rel.nearer(a.box, b.box, c.box) or 0]
    text = f"Is the {a.name} nearer to the {b.name} or the {c.name}?"
    return Question("nearer", text, (b.name, c.name), answer, scenes, (a.name, b.name, c.name))


def _behind(rng: random.Random, scenes: tuple[Scene, ...]) -> Question:
    q = _relation(rng, scenes, "hrel")
    text = "Seen from behind, i" + q.text[1:]
    return replace(q, family="behind", text=text, answer=rel.from_behind("hrel", q.answer))


def _view(rng: random.Random, scenes: tuple[Scene, ...]) -> Question:
    axis = rng.choice(("hrel", "vrel"))
    image_index = rng.randrange(2)
    q = _relation(rng, (scenes[image_index],), axis)
    text = f"In the {rel.ORDINALS[image_index]} picture, i" + q.text[1:]
    return replace(q, family="view", text=text, scenes=scenes, image_index=image_index)


def _moved(rng: random.Random, scenes: tuple[Scene, ...]) -> Question:
    before, after = scenes
    moved = [(a, b) for a, b in zip(before.things, after.things, strict=True) if a.cell[1] != b.cell[1]]
    if not moved:
        raise ValueError("nothing moved left or right between the two images")
    a, b = rng.choice(moved)
    one, two = _shuffled(rng, rel.OPTIONS["hrel"])
    answer = "right" if b.cell[1] > a.cell[1] else "left"
    return Question("moved", f"Did the {a.name} move {one} or {two}?", (one, two), answer, scenes, (a.name,), "hrel")


def scenes_for(family: str, rng: random.Random) -> tuple[Scene, ...]:
    """Random scenes for a question of `family`, one per image."""
    if family == "view":  # the same things in two arrangements
        kinds = sample_kinds(rng, rng.randint(2, 3))
        return place(rng, kinds), place(rng, kinds)
    if family == "moved":  # one thing moves to a free column
        before = sample_scene(rng, 2, BOARD - 1)
        index = rng.randrange(len(before.things))
        thing = before.things[index]
        column = rng.choice([c for c in range(BOARD) if c not in {t.cell[1] for t in before.things}])
        moved_thing = replace(thing, box=box_in_cell(rng, thing.cell[0], column, thing.size))
        return before, Scene((*before.things[:index], moved_thing, *before.things[index + 1 :]))
    return (sample_scene(rng, 3 if family == "nearer" else 2, BOARD),)


def ask(family: str, scenes: tuple[Scene, ...], rng: random.Random) -> Question:
    """A random question of `family` about `scenes` (from `scenes_for` of the same family).

    Raises:
        ValueError: the family is unknown, or the scenes allow no such question (ties, nothing moved).
    """
    if family in rel.AXES:
        return _relation(rng, scenes, family)
    makers = {"count": _count, "nearer": _nearer, "behind": _behind, "view": _view, "moved": _moved}
    if family not in makers:
        raise ValueError(f"unknown family of questions {family!r}; use one of {', '.join(FAMILIES)}")
    return makers[family](rng, scenes)


def make(family: str, rng: random.Random) -> Question:
    """A random question of `family` with new random scenes.

    Raises:
        ValueError: the family is not one of FAMILIES.
    """
    while True:
        scenes = scenes_for(family, rng)
        try:
            return ask(family, scenes, rng)
        except ValueError:
            if family != "nearer":  # only equal distances are worth another draw
                raise


def pair(family: str, rng: random.Random) -> tuple[Question, Question]:
    """Two questions with the same text and opposite answers, as MMVP's pairs.

    Their images differ only in two things that have swapped places along the axis of the question.

    Args:
        family: "hrel" or "vrel".
    """
    first = _relation(rng, (sample_scene(rng),), family)
    a, b = (first.scenes[0].by_name(name) for name in first.targets)
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
    """A box in the world's tag format, in pixels."""
    return f"<bbox>[{','.join(str(v) for v in box)}]</bbox>"


def box_sentence(name: str, box: tuple[int, int, int, int], image_index: int | None = None) -> str:
    """`The red circle is at <bbox>[4,8,20,24]</bbox>.`; with `image_index` (0 or 1) the sentence names the image."""
    start = "The" if image_index is None else f"In the {rel.ORDINALS[image_index]} picture, the"
    return f"{start} {name} is at {box_text(box)}."


def conclusion(q: Question, answer: str) -> str:
    """The statement that implies `answer`, one of `q.choices`, true or not."""
    first = q.targets[0] if q.targets else ""
    if q.family == "count":
        noun = q.text.split()[2].removesuffix("s")
        return f"There is one {noun}." if answer == "one" else f"There are {answer} {noun}s."
    if q.family == "nearer":
        return f"The {first} is nearer to the {answer}."
    if q.family == "moved":
        return f"The {first} moved {answer}."
    lead = {"behind": "Seen from behind, the", "view": f"In the {rel.ORDINALS[q.image_index or 0]} picture, the"}
    assert q.axis is not None
    return f"{lead.get(q.family, 'The')} {first} is {answer}{rel.TAIL[q.axis]} the {q.targets[1]}."


def steps(q: Question) -> list[str]:
    """True reasoning: one box sentence per target (in each relevant image), then the statement."""
    if q.family == "moved":
        image_indices: tuple[int | None, ...] = (0, 1)
    else:
        image_indices = (q.image_index,)
    sentences = []
    for image_index in image_indices:
        scene = q.scenes[image_index or 0]
        for name in q.targets:
            thing = scene.by_name(name)
            assert thing is not None
            sentences.append(box_sentence(name, thing.box, image_index))
    return [*sentences, conclusion(q, q.answer)]


def write_trace(sentences: list[str], answer: str) -> str:
    """A policy's text: one step per line inside <think>, then the answer."""
    return "<think>" + "\n".join(sentences) + f"</think><answer>{answer}</answer>"


def trace(q: Question) -> str:
    """The canonical true trace of `q`."""
    return write_trace(steps(q), q.answer)
