"""What the mini backbone is taught with: token sequences over pictures whose features are already computed.

Three kinds of turns about a picture, all answered at once: where a thing is, on which side of the picture it is, and
the questions of the world answered directly; several turns share one picture. And reasoning that is text alone: the
boxes are given (they carry no loss), the statement and the answer follow from them, either without a picture or with
a picture that has nothing to do with it. No sequence holds an answer that contradicts its statement or its picture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from miniworld import fast
from miniworld import questions as qs
from miniworld import relations as rel
from miniworld.render import render
from miniworld.scene import BOARD, COLORS, PIXELS, SIZES, Scene, Thing

NO_LOSS = -100
LISTED = 0.3  # share of the questions for two things that ask for all things of one shape instead


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of turns, and of the families among the questions."""

    locate: float
    locate_two: float
    half: float
    question: float
    families: Mapping[str, float]


@dataclass
class Lesson:
    """One sequence. `pictures`: indices into the pool, in order; `looks`: (token, image tokens it should look at)."""

    ids: list[int]
    labels: list[int]
    pictures: tuple[int, ...] = ()
    looks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class Pool:
    """Scenes with the features of their pictures, drawn once: single ones, and pairs for the two-picture families."""

    def __init__(self, singles: int, pairs: int, seed: str) -> None:
        rng = random.Random(seed)
        self.scenes: list[Scene] = []
        self.groups: dict[str, list[tuple[int, ...]]] = {}
        for family, count in (("single", singles), ("view", pairs), ("moved", pairs)):
            self.groups[family] = []
            for _ in range(count):
                scenes = qs.scenes_for("hrel" if family == "single" else family, rng)
                first = len(self.scenes)
                self.scenes.extend(scenes)
                self.groups[family].append(tuple(range(first, first + len(scenes))))
        self.images = [render(scene, rng) for scene in self.scenes]
        self.features_MKH = torch.empty(0)

    def compute(self, visual: torch.nn.Module) -> None:
        """Computes the features of all pictures with the frozen tower."""
        self.features_MKH = fast.features_of(visual, self.images)

    def group(self, rng: random.Random, family: str) -> tuple[int, ...]:
        """A random group of pictures on which `family` can be asked."""
        return rng.choice(self.groups.get(family) or self.groups["single"])


def _side(rng: random.Random, thing: Thing) -> tuple[str, str]:
    """On which side of the picture a thing is, or whether it is big (closer) or small (farther) for a thing."""
    axis = rng.choice(rel.AXES)
    x, y = thing.center
    value = {"hrel": PIXELS / 2 - x, "vrel": PIXELS / 2 - y, "depth": thing.size - (SIZES[0] + SIZES[-1]) / 2}[axis]
    value = value or rng.choice((-1, 1))
    one, two = rng.sample(rel.OPTIONS[axis], 2)
    return f"Is the {thing.name} {one} or {two}?", rel.OPTIONS[axis][0 if value > 0 else 1]


class Teacher:
    """Makes lessons from a pool."""

    def __init__(self, codec: fast.Codec, pool: Pool) -> None:
        self.codec, self.pool = codec, pool
        numbers = {str(v) for v in range(0, PIXELS + 1, 4)}
        self._numbers = {codec.encode(n)[0] for n in numbers}
        self._colors = {codec.encode(lead + c)[0]: c for c in COLORS for lead in ("", " ")}

    def _turn(self, rng: random.Random, mix: Mix, scenes: tuple[Scene, ...], family: str) -> tuple[str, str]:
        """A question about `scenes` and its reply."""
        kinds = ("locate", "locate_two", "half", "question")
        kind = rng.choices(kinds, (mix.locate, mix.locate_two, mix.half, mix.question))[0]
        if len(scenes) == 1 and kind != "question":
            thing, other = rng.sample(scenes[0].things, 2)
            if kind == "locate_two":
                listed = rng.random() < LISTED
                things = [t for t in scenes[0].things if t.shape == thing.shape] if listed else [thing, other]
                reply = "\n".join(qs.box_sentence(t.name, t.box) for t in things)
                wanted = f"{thing.shape}s" if listed else f"{thing.name} and the {other.name}"
                return f"Where are the {wanted}?", reply
            if kind == "locate":
                return f"Where is the {thing.name}?", qs.box_sentence(thing.name, thing.box)
            text, word = _side(rng, thing)
            return text, f"<answer>{word}</answer>"
        if len(scenes) == 2 and kind.startswith("locate"):
            name = rng.choice(scenes[0].things).name
            picture = rng.randrange(2)
            if kind == "locate":
                text = f"In the {rel.ORDINALS[picture]} picture, where is the {name}?"
                return text, qs.box_sentence(name, scenes[picture].box_of(name), picture)
            reply = "\n".join(qs.box_sentence(name, scene.box_of(name), i) for i, scene in enumerate(scenes))
            return f"Where is the {name} in the first and second picture?", reply
        names = [f for f in mix.families if f not in ("view", "moved")] if len(scenes) == 1 else [family]
        while True:
            chosen = rng.choices(names, [mix.families[f] for f in names])[0]
            try:
                q = qs.ask(chosen, scenes, rng)
            except ValueError:  # three things at equal distances, or fewer than three
                continue
            return q.text, f"<answer>{q.answer}</answer>"

    def direct(self, rng: random.Random, mix: Mix, turns: int) -> Lesson:
        """Up to `turns` turns about one picture (or pair), none asked twice."""
        weight = {f: mix.families.get(f, 0.0) for f in ("view", "moved")}
        family = rng.choices(("single", *weight), (1 - sum(weight.values()), *weight.values()))[0]
        pictures = self.pool.group(rng, family)
        scenes = tuple(self.pool.scenes[i] for i in pictures)
        codec = self.codec
        ids = list(codec.encode(fast.SYSTEM + fast.PICTURE * len(pictures)))
        labels = [NO_LOSS] * len(ids)
        asked: set[str] = set()
        for _ in range(3 * turns):
            if len(asked) == turns:
                break
            text, reply = self._turn(rng, mix, scenes, family)
            key = " ".join(sorted(text.replace("?", "").split()))  # the same question with its options turned round
            if key in asked:
                continue
            before = [*(codec.encode(fast.TO_USER) if asked else ()), *codec.encode(text)]
            before += codec.encode(fast.TO_ASSISTANT)
            after = [*codec.encode(reply), codec.end]
            asked.add(key)
            ids += before + after
            labels += [NO_LOSS] * len(before) + after
        return Lesson(ids, labels, pictures, self._looks(ids, scenes))

    def looking(self, rng: random.Random, families: Mapping[str, float]) -> Lesson:
        """How reasoning about a picture begins: the boxes of what is asked about, and no further."""
        family = rng.choices(list(families), list(families.values()))[0]
        while True:
            pictures = self.pool.group(rng, family)
            scenes = tuple(self.pool.scenes[i] for i in pictures)
            try:
                q = qs.ask(family, scenes, rng)
                break
            except ValueError:  # nothing to ask about this scene
                continue
        codec = self.codec
        before = codec.prompt(q.text, len(pictures))
        after = codec.encode("<think>" + "".join(box + "\n" for box in qs.steps(q)[:-1]))
        ids = [*before, *after]
        return Lesson(ids, [NO_LOSS] * len(before) + [*after], pictures, self._looks(ids, scenes))

    def reasoning(self, rng: random.Random, families: Mapping[str, float], unrelated: bool, derive: bool) -> Lesson:
        """True reasoning about a scene that is not shown; with `unrelated`, other pictures stand in the prompt.

        The given boxes carry no loss. With `derive` nothing does but what has to be worked out: the words of the statement
        that decide, and the answer. (With loss on every word the few that decide drown, and are not learned.)
        """
        family = rng.choices(list(families), list(families.values()))[0]
        q = qs.make(family, rng)
        pictures: tuple[int, ...] = ()
        if unrelated:
            pictures = tuple(rng.randrange(len(self.pool.scenes)) for _ in q.scenes)
        codec = self.codec
        *boxes, statement = qs.steps(q)
        said = codec.encode(statement)
        other = codec.encode(qs.conclusion(q, next(c for c in q.choices if c != q.answer)))
        answer, close = codec.encode(q.answer), (*codec.encode("</answer>"), codec.end)
        given = codec.encode("<think>" + "".join(box + "\n" for box in boxes))
        between = codec.encode("</think><answer>")
        before = codec.prompt(q.text, len(pictures))
        if derive:
            decides = [t if i >= len(other) or other[i] != t else NO_LOSS for i, t in enumerate(said)]
            labels = [NO_LOSS] * len(given) + decides + [NO_LOSS] * len(between) + [*answer] + [NO_LOSS] * len(close)
        else:
            chance = {*self._numbers, *(self._colors if family == "count" else ())}  # what the text does not decide
            free = [NO_LOSS if token in chance else token for token in given]
            labels = [*free, *said, *between, *answer, *close]
        ids = [*before, *given, *said, *between, *answer, *close]
        return Lesson(ids, [NO_LOSS] * len(before) + labels, pictures)

    def _looks(self, ids: list[int], scenes: tuple[Scene, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """For each colour word, the image tokens in which the thing of that colour lies (one a picture)."""
        starts = [i for i, t in enumerate(ids) if t == self.codec.image and ids[i - 1] != self.codec.image]
        places: dict[str, tuple[int, ...]] = {}
        for start, scene in zip(starts, scenes, strict=True):
            for thing in scene.things:
                row, column = thing.cell
                places[thing.color] = (*places.get(thing.color, ()), start + row * BOARD + column)
        words = ((i, self._colors[t]) for i, t in enumerate(ids) if t in self._colors)
        return [(i, places[color]) for i, color in words if color in places]


def features_for(pool: Pool, lessons: Sequence[Lesson]) -> torch.Tensor | None:
    """Features (M, K, H) of the lessons' pictures, in order; None if no lesson has one."""
    pictures = [i for lesson in lessons for i in lesson.pictures]
    return pool.features_MKH[pictures] if pictures else None
