"""TreeVGR-RL-37K (HaochenWang/TreeVGR-RL-37K): about 30K free-form V* questions, then about 7K VisDrone questions with letters.

One parquet file: images ["images/0.jpg"], problem "<image>\\n…", answer, target_instances [{bbox in pixels, label, name}].
Lettered options are split from the problem, and the letter is replaced by the option's text. Free-form answers become multiple
choice. Boxes stay in original pixels. Section 3.3, Appendix A.3.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from data_curation.gold import gold_index
from data_curation.multiple_choice import MAX_WORDS, AnswerPool, clean, core, make_choices, words
from data_curation.source import (
    Context,
    Drop,
    Source,
    boxes_of,
    convert,
    image_below,
    image_size,
    numbered_rows,
    options_in,
    parquet_files,
    text_of,
    tidy_boxes,
)
from fgrpo.types import Sample

COLUMNS = ("images", "problem", "answer", "target_instances")
_IMAGE_TAG = re.compile(r"<image>\s*", re.IGNORECASE)
_OPTIONS_WORD = re.compile(r"\s*(?:options|choices)\s*:?\s*$", re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Z]\)?\.?")
GROUP = "vstar"


def _records(context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    return numbered_rows(parquet_files(context.folder), COLUMNS, "treevgr/train")


def _problem(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(question, lettered options or ()) of a row."""
    text = _IMAGE_TAG.sub("", text_of(row, "problem")).strip()
    question, choices = options_in(text)
    question = _OPTIONS_WORD.sub("", question) if choices else question
    if not question:
        raise Drop("no_problem")
    return question, choices


def _read(context: Context) -> Iterator[Sample]:
    pool = AnswerPool()
    for _, row in _records(context):  # first pass: collect answers as distractors
        try:
            question, choices = _problem(row)
            if not choices and not _LETTER.fullmatch(text_of(row, "answer")):
                pool.add(GROUP, question, text_of(row, "answer"))
        except Drop:
            continue

    def sample(record_id: str, row: dict[str, Any]) -> Sample:
        question, choices = _problem(row)
        answer = clean(text_of(row, "answer"))
        rng = random.Random(f"{context.seed}/{record_id}/choices")
        if choices:
            index = gold_index(answer, choices)
            if index is None:
                raise Drop("answer_not_among_options")
            answer = choices[index]
        elif _LETTER.fullmatch(answer):
            raise Drop("letter_without_options")
        elif len(words(answer := core(question, answer))) > MAX_WORDS:
            raise Drop("answer_is_a_sentence")
        else:
            generated = make_choices(GROUP, question, answer, pool, rng, context.choices)
            if generated is None:
                raise Drop("no_distractors")
            choices = generated
        images = row["images"] or []
        if len(images) != 1:
            raise Drop("not_one_image")
        path = image_below(context.folder, images[0])
        coordinates = ((instance or {}).get("bbox") for instance in row["target_instances"] or ())
        boxes = tidy_boxes(boxes_of(coordinates, context.tally), image_size(path), context.tally)
        if not boxes:
            context.tally.notes["no_box"] += 1
        return Sample(record_id, (str(path),), question, choices, answer, boxes or None)

    yield from convert(_records(context), sample, context.tally)


SOURCE = Source("treevgr", "TreeVGR-RL-37K", "HaochenWang/TreeVGR-RL-37K", parquet_files, _read)
