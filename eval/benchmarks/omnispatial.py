"""OmniSpatial (qizekun/OmniSpatial): dynamics, interaction, logic, perspective; 1533 questions; column OmniSpatial.

File `data.json`: id "0_0", question, options (list), answer (0-based index), task_type, sub_task_type. There is no image
field: the image is `<task_type>/<id before "_">.png`, and ids repeat across task types. Rows without options stay: with a
text answer (about 229) as free-form questions, with an index as a question about choices in the image, scored by letter. The
official code answers "A" if it cannot parse a reply; this code never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from eval.base import Benchmark, Drop, image_paths, one_file
from fgrpo.errors import UserError
from fgrpo.options import letter_index, letters
from fgrpo.types import Sample

DRAWN_LEAST, DRAWN_MOST = 4, 26  # options of a question whose choices are in its image; their number is not stated
AMBIGUOUS = "the answer is an option's text and another one's index"


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "data.json", "omnispatial")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"benchmark omnispatial: {path} is not JSON ({error}); download it again") from error
    if not isinstance(rows, list):
        raise UserError(f"benchmark omnispatial: {path} must hold a list of questions, not a {type(rows).__name__}")
    drawn = _drawn(row for row in rows if isinstance(row, dict))
    for row in rows:
        if not isinstance(row, dict):
            yield Drop("not an object")
            continue
        missing = [key for key in ("id", "question", "task_type", "answer") if row.get(key) in (None, "")]
        if missing:
            yield Drop(f"no {', '.join(missing)}")
            continue
        try:
            choices, answer = _choices_and_gold(row.get("options"), row["answer"], drawn)
        except ValueError as error:
            yield Drop(str(error))
            continue
        if answer is None:
            yield Drop("the answer is no index of the options")
            continue
        scene = str(row["id"]).split("_", 1)[0]
        try:
            images = image_paths(path.parent, [f"{row['task_type']}/{scene}.png"])
        except ValueError as error:
            yield Drop(str(error))
            continue
        meta = {"task": row["task_type"], "sub_task": row.get("sub_task_type")}
        sample_id = f"omnispatial/test/{row['task_type']}.{row['id']}"
        yield Sample(sample_id, images, str(row["question"]).strip(), choices, answer, meta=meta)


def _drawn(rows: Iterable[dict[str, Any]]) -> int:
    """The number of letters of every question whose choices are in its image: enough for each of their answers.

    One number for all, so that it says nothing about the answer of one question.
    """
    indices = [_drawn_index(row.get("answer")) for row in rows if not _texts(row.get("options"))]
    return max(DRAWN_LEAST, *(index + 1 for index in indices if index is not None), 0)


def _texts(options: Any) -> tuple[str, ...]:
    return tuple(str(o).strip() for o in options) if isinstance(options, list) else ()


def _drawn_index(answer: Any) -> int | None:
    """The index of an answer without options: an integer, or a lone capital; None for any other."""
    if isinstance(answer, str):
        text = answer.strip()
        return letter_index(text, letters(DRAWN_MOST)) if len(text) == 1 and text.isupper() else None
    return answer if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < DRAWN_MOST else None


def _choices_and_gold(options: Any, answer: Any, drawn: int) -> tuple[tuple[str, ...], str | None]:
    """The options and the gold option's text; the text is None if the row cannot be scored.

    With options, the answer is an index (the number may be a string), or an option's text. Without options, an index or a lone capital means choices
    that are drawn in the image: the first `drawn` letters are the options. Any other text is a free-form answer.

    Raises:
        ValueError: the answer is an option's text, and as an index another option; the message is the reason.
    """
    choices = _texts(options)
    text = str(answer).strip()
    index = int(text) if text.isdecimal() and len(text) < 4 and not isinstance(answer, bool) else None
    if choices:
        gold = text if text in choices and isinstance(answer, str) else None
        by_index = choices[index] if index is not None and index < len(choices) else None
        if gold is not None and by_index not in (None, gold):
            raise ValueError(AMBIGUOUS)
        return choices, by_index if by_index is not None else gold
    place = _drawn_index(answer)
    if place is None:
        return (), (text or None) if isinstance(answer, str) else None
    return letters(drawn), letters(drawn)[place]


BENCHMARK = Benchmark(
    "omnispatial", "OmniSpatial", "OmniSpatial", "qizekun/OmniSpatial", _read, known_as=("OmniSpatialBench",)
)
