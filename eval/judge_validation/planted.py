"""The miniature world as a labelled set for any judge: pictures of generated scenes, traces with planted errors, exact truth."""

from __future__ import annotations

import random
from pathlib import Path

from eval.judge_validation.labelled.base import Labelled
from fgrpo.files import write_jsonl
from miniworld import questions as qs
from miniworld.planted import CONTROLS, ERRORS, Planted, plant
from miniworld.render import render
from miniworld.scene import PIXELS
from miniworld.truth import FILE, entry
from rewards.consistency import ConsistencyItem
from rewards.semantic_grounding import GroundingItem

BESIDE = "sentences beside it"  # what is true in a trace with a planted error
TEXT_ONLY = ("flipped_answer", "no_conclusion")  # their sentences are those of the true trace


def world(scenes: int, folder: Path, seed: int = 0) -> list[Labelled]:
    """Every kind of planted error and control in turn on `scenes` generated questions of all families.

    Writes the pictures and the truth book into `folder`, which is then a data root for the oracle. The same seed gives the
    same items. Grounding items have one kind a sentence: the planted one's, or `BESIDE`.
    """
    rng = random.Random(f"planted/{seed}")
    items: list[Labelled] = []
    book = []
    for n in range(scenes):
        question = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            picture = render(scene, rng)
            paths.append(folder / f"{n:05d}-{k}.png")
            picture.save(paths[-1])
            book.append(entry(picture, scene))
        for kind in (*ERRORS, *CONTROLS):
            items += _items(plant(kind, question, rng), f"{n:05d}/{kind}", tuple(map(str, paths)))
    write_jsonl(folder / FILE, book)
    return items


def _items(made: Planted, name: str, paths: tuple[str, ...]) -> list[Labelled]:
    q, said = made.question, made.sentences
    follows = "CONSISTENT" if made.consistent else "INCONSISTENT"
    text = Labelled(ConsistencyItem(name, q.text, q.choices, made.think, made.answer), (follows,), (made.kind,))
    if made.kind in TEXT_ONLY:
        return [text]
    contexts = tuple(said[:i] for i in range(len(said)))
    sizes = ((PIXELS, PIXELS),) * len(paths)
    kinds = tuple(made.kind if i in made.places else BESIDE for i in range(len(said)))
    return [text, Labelled(GroundingItem(name, paths, q.text, said, contexts, sizes), made.labels, kinds)]
