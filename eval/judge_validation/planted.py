"""The miniature world as a labelled set for any judge: images of generated scenes, traces with planted errors, exact truth."""

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

BESIDE = "sentences beside it"  # the kind of the true sentences of a trace with a planted error
TEXT_ONLY = (
    "flipped_answer",
    "no_conclusion",
)  # their sentences are those of the true trace, so only consistency is tested


def world(scenes: int, folder: Path, seed: int = 0) -> list[Labelled]:
    """Every kind of planted error and control, on each of `scenes` generated questions of all families.

    Writes the images and the truth book into `folder`, which is then a data root for the oracle. The same seed gives the
    same items. Grounding items have one kind per sentence: the planted one's, or `BESIDE`.
    """
    rng = random.Random(f"planted/{seed}")
    items: list[Labelled] = []
    book = []
    for n in range(scenes):
        question = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            image = render(scene, rng)
            paths.append(folder / f"{n:05d}-{k}.png")
            image.save(paths[-1])
            book.append(entry(image, scene))
        for kind in (*ERRORS, *CONTROLS):
            items += _items(plant(kind, question, rng), f"{n:05d}/{kind}", tuple(map(str, paths)))
    write_jsonl(folder / FILE, book)
    return items


def _items(trace: Planted, name: str, paths: tuple[str, ...]) -> list[Labelled]:
    q, sentences = trace.question, trace.sentences
    follows = "CONSISTENT" if trace.consistent else "INCONSISTENT"
    text = Labelled(ConsistencyItem(name, q.text, q.choices, trace.think, trace.answer), (follows,), (trace.kind,))
    if trace.kind in TEXT_ONLY:
        return [text]
    contexts = tuple(sentences[:i] for i in range(len(sentences)))
    sizes = ((PIXELS, PIXELS),) * len(paths)
    kinds = tuple(trace.kind if i in trace.places else BESIDE for i in range(len(sentences)))
    return [text, Labelled(GroundingItem(name, paths, q.text, sentences, contexts, sizes), trace.labels, kinds)]
