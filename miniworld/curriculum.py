"""Training sequences of the mini backbone: token sequences over images whose features are precomputed.

Three kinds of turns concern an image and are answered directly: where a thing is, on which side of the image it is, and the
questions of the world. Several turns share one image. In addition there is text-only reasoning: the boxes are given (without
loss), and the statement and the answer follow from them, either without an image or with an unrelated one. No sequence contains
an answer that contradicts its statement or its image.
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
LISTED = 0.3  # share of the two-thing questions that ask for all things of one shape instead


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
    """One training sequence.

    Attributes:
        ids, labels: token ids and labels (NO_LOSS where there is no loss).
        image_indices: indices into the pool, in order.
        attention_targets: (token, image tokens that it should attend to).
    """

    ids: list[int]
    labels: list[int]
    image_indices: tuple[int, ...] = ()
    attention_targets: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class Pool:
    """Scenes with the features of their images: single ones, and pairs for the two-image families.

    `features_MKH` has shape (images, image tokens per image, hidden size).
    """

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
        """Compute the features of all images with the frozen vision tower."""
        self.features_MKH = fast.features_of(visual, self.images)

    def group(self, rng: random.Random, family: str) -> tuple[int, ...]:
        """A random group of images that suits questions of `family`."""
        return rng.choice(self.groups.get(family) or self.groups["single"])


def _side(rng: random.Random, thing: Thing) -> tuple[str, str]:
    """A question about the side of the image a thing is on, or about its size (big is closer), and its answer."""
    axis = rng.choice(rel.AXES)
    x, y = thing.center
    value = {"hrel": PIXELS / 2 - x, "vrel": PIXELS / 2 - y, "depth": thing.size - (SIZES[0] + SIZES[-1]) / 2}[axis]
    value = value or rng.choice((-1, 1))
    one, two = rng.sample(rel.OPTIONS[axis], 2)
    return f"Is the {thing.name} {one} or {two}?", rel.OPTIONS[axis][0 if value > 0 else 1]


class LessonSampler:
    """Samples lessons from a pool."""

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
                phrase = f"{thing.shape}s" if listed else f"{thing.name} and the {other.name}"
                return f"Where are the {phrase}?", reply
            if kind == "locate":
                return f"Where is the {thing.name}?", qs.box_sentence(thing.name, thing.box)
            text, word = _side(rng, thing)
            return text, f"<answer>{word}</answer>"
        if len(scenes) == 2 and kind.startswith("locate"):
            name = rng.choice(scenes[0].things).name
            image_index = rng.randrange(2)
            if kind == "locate":
                text = f"In the {rel.ORDINALS[image_index]} picture, where is the {name}?"
                return text, qs.box_sentence(name, scenes[image_index].box_of(name), image_index)
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
        """Up to `turns` distinct turns about one image (or pair)."""
        weight = {f: mix.families.get(f, 0.0) for f in ("view", "moved")}
        family = rng.choices(("single", *weight), (1 - sum(weight.values()), *weight.values()))[0]
        image_indices = self.pool.group(rng, family)
        scenes = tuple(self.pool.scenes[i] for i in image_indices)
        codec = self.codec
        ids = list(codec.encode(fast.SYSTEM + fast.IMAGE_BLOCK * len(image_indices)))
        labels = [NO_LOSS] * len(ids)
        asked_keys: set[str] = set()
        for _ in range(3 * turns):
            if len(asked_keys) == turns:
                break
            text, reply = self._turn(rng, mix, scenes, family)
            key = " ".join(sorted(text.replace("?", "").split()))  # equal for a question with its options swapped
            if key in asked_keys:
                continue
            prompt_ids = [*(codec.encode(fast.TO_USER) if asked_keys else ()), *codec.encode(text)]
            prompt_ids += codec.encode(fast.TO_ASSISTANT)
            reply_ids = [*codec.encode(reply), codec.end]
            asked_keys.add(key)
            ids += prompt_ids + reply_ids
            labels += [NO_LOSS] * len(prompt_ids) + reply_ids
        return Lesson(ids, labels, image_indices, self._attention_targets(ids, scenes))

    def locating(self, rng: random.Random, families: Mapping[str, float]) -> Lesson:
        """The start of reasoning about an image: only the boxes of the question's things."""
        family = rng.choices(list(families), list(families.values()))[0]
        while True:
            image_indices = self.pool.group(rng, family)
            scenes = tuple(self.pool.scenes[i] for i in image_indices)
            try:
                q = qs.ask(family, scenes, rng)
                break
            except ValueError:  # the scene allows no such question
                continue
        codec = self.codec
        prompt_ids = codec.prompt(q.text, len(image_indices))
        reply_ids = codec.encode("<think>" + "".join(box + "\n" for box in qs.steps(q)[:-1]))
        ids = [*prompt_ids, *reply_ids]
        return Lesson(
            ids, [NO_LOSS] * len(prompt_ids) + [*reply_ids], image_indices, self._attention_targets(ids, scenes)
        )

    def reasoning(self, rng: random.Random, families: Mapping[str, float], unrelated: bool, derive: bool) -> Lesson:
        """True reasoning about a scene that is not shown; with `unrelated`, the prompt contains other images.

        The given boxes have no loss. With `derive`, only the words of the statement that decide and the answer have loss: with loss
        on every word, the few deciding ones contribute too little to be learned.
        """
        family = rng.choices(list(families), list(families.values()))[0]
        q = qs.make(family, rng)
        image_indices: tuple[int, ...] = ()
        if unrelated:
            image_indices = tuple(rng.randrange(len(self.pool.scenes)) for _ in q.scenes)
        codec = self.codec
        *boxes, statement = qs.steps(q)
        statement_ids = codec.encode(statement)
        false_ids = codec.encode(qs.conclusion(q, next(c for c in q.choices if c != q.answer)))
        answer_ids, end_ids = codec.encode(q.answer), (*codec.encode("</answer>"), codec.end)
        box_ids = codec.encode("<think>" + "".join(box + "\n" for box in boxes))
        separator_ids = codec.encode("</think><answer>")
        prompt_ids = codec.prompt(q.text, len(image_indices))
        if derive:
            statement_labels = [
                t if i >= len(false_ids) or false_ids[i] != t else NO_LOSS for i, t in enumerate(statement_ids)
            ]
            labels = (
                [NO_LOSS] * len(box_ids)
                + statement_labels
                + [NO_LOSS] * len(separator_ids)
                + [*answer_ids]
                + [NO_LOSS] * len(end_ids)
            )
        else:
            undetermined = {
                *self._numbers,
                *(self._colors if family == "count" else ()),
            }  # tokens that the text does not determine
            free = [NO_LOSS if token in undetermined else token for token in box_ids]
            labels = [*free, *statement_ids, *separator_ids, *answer_ids, *end_ids]
        ids = [*prompt_ids, *box_ids, *statement_ids, *separator_ids, *answer_ids, *end_ids]
        return Lesson(ids, [NO_LOSS] * len(prompt_ids) + labels, image_indices)

    def _attention_targets(self, ids: list[int], scenes: tuple[Scene, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """For each colour word, the image tokens that contain the thing of that colour (one per image)."""
        starts = [i for i, t in enumerate(ids) if t == self.codec.image and ids[i - 1] != self.codec.image]
        places: dict[str, tuple[int, ...]] = {}
        for start, scene in zip(starts, scenes, strict=True):
            for thing in scene.things:
                row, column = thing.cell
                places[thing.color] = (*places.get(thing.color, ()), start + row * BOARD + column)
        words = ((i, self._colors[t]) for i, t in enumerate(ids) if t in self._colors)
        return [(i, places[color]) for i, color in words if color in places]


def features_for(pool: Pool, lessons: Sequence[Lesson]) -> torch.Tensor | None:
    """Features (M, K, H) of the lessons' images, in order; None if no lesson has an image."""
    image_indices = [i for lesson in lessons for i in lesson.image_indices]
    return pool.features_MKH[image_indices] if image_indices else None
