"""What the miniature world knows beyond the benchmark files: true boxes, and what a trace states (in place of annotations).

The seven benchmarks annotate no boxes. Where the data root holds a truth book (`miniworld.truth`), the true boxes of the
things asked about give spatial grounding, and the oracle reads the answer that a trace states, for the flip rate
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
    """The truth book of a data root, None where there is none."""
    return TruthBook.load(data_root) if (Path(data_root) / FILE).is_file() else None


def with_true_boxes(sample: Sample, truth: TruthBook | None) -> Sample:
    """`sample` with the boxes of the things its question asks about (original pixels), if the truth is known.

    The boxes lie in the picture that the question names, else in each picture (before and after a move).
    """
    if truth is None or sample.boxes is not None:
        return sample
    scenes = truth.scenes(sample.images)
    asked = parse_question(sample.question)
    if scenes is None or asked is None:
        return sample
    wanted = [asked.image_index] if asked.image_index is not None else list(range(len(scenes)))
    boxes, pictures = [], []
    for picture in wanted:
        if picture >= len(scenes):
            return sample
        for thing in scenes[picture].things:
            counted = asked.family == "count" and asked.noun in ("thing", thing.shape)
            if counted or thing.name in asked.names:
                boxes.append(Box(*thing.box, frame="original"))
                pictures.append(picture)
    if not boxes:
        return sample
    return replace(sample, boxes=tuple(boxes), meta={**sample.meta, "box_image": wanted[0], "box_images": pictures})


def statement_scores(sample: Sample, think: str, answer: str | None, truth: TruthBook | None) -> dict[str, Score]:
    """Scores "statement" (the trace's last statement is true) and "flip" (the answer departs from a wrong statement)."""
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
