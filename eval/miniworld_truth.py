"""What the miniature world adds to the benchmark files: true boxes, and the answer that a trace states.

The paper's seven benchmarks annotate no boxes. If the data root holds a truth book (`miniworld.truth`), the true boxes of the things in
the question give spatial grounding, and the oracle reads the answer that a trace states, for the flip rate
P(answer ≠ statement | statement wrong). Without a truth book (real data) all of this is "not applicable".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fgrpo.types import Box, Sample, Score
from miniworld.language import parse_question
from miniworld.oracle import option_word, stated_answer
from miniworld.truth import FILE, TruthBook


def book(data_root: str | Path) -> TruthBook | None:
    """The truth book of a data root, None if there is none."""
    return TruthBook.load(data_root) if (Path(data_root) / FILE).is_file() else None


def with_true_boxes(sample: Sample, truth: TruthBook | None) -> Sample:
    """`sample` with the boxes (original pixels) of the things in its question, if the truth is known.

    The boxes are those of the image that the question names, else of every image (before and after a move).
    """
    if truth is None or sample.boxes is not None:
        return sample
    scenes = truth.scenes(sample.images)
    question = parse_question(sample.question)
    if scenes is None or question is None:
        return sample
    images = [question.image_index] if question.image_index is not None else list(range(len(scenes)))
    boxes, box_images = [], []
    for image in images:
        if image >= len(scenes):
            return sample
        for thing in scenes[image].things:
            is_counted = question.family == "count" and question.noun in ("thing", thing.shape)
            if is_counted or thing.name in question.names:
                boxes.append(Box(*thing.box, frame="original"))
                box_images.append(image)
    if not boxes:
        return sample
    return replace(sample, boxes=tuple(boxes), meta={**sample.meta, "box_image": images[0], "box_images": box_images})


def statement_scores(sample: Sample, think: str, answer: str | None, truth: TruthBook | None) -> dict[str, Score]:
    """The scores "statement" (the trace's last statement is true) and "flip" (the answer differs from a wrong statement)."""
    if truth is None or truth.scenes(sample.images) is None:
        nothing = Score.not_applicable("the truth is not known")
        return {"statement": nothing, "flip": nothing}
    stated = stated_answer(sample.question, think)
    if stated is None:
        nothing = Score.not_applicable("the trace states no answer")
        return {"statement": nothing, "flip": nothing}
    right = stated == option_word(sample.answer, sample.choices)
    if right:
        flip = Score.not_applicable("the statement is right")
    elif answer is None:
        flip = Score.not_applicable("there is no answer")
    else:
        flip = Score.of(float(option_word(answer, sample.choices) != stated), f"stated {stated!r}")
    return {"statement": Score.of(float(right), f"stated {stated!r}"), "flip": flip}
