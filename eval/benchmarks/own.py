"""The user's own benchmark: `<data root>/bench/own/questions.jsonl`, one question per line; not a column of Table 1.

A second one under a name of its own is a module of two lines, such as eval/benchmarks/kitchen.py for
`<data root>/bench/kitchen/questions.jsonl`:

    from eval.benchmarks.own import questions_file
    BENCHMARK = questions_file("kitchen", "Kitchen scenes")

Keys: question; images (list of paths below the file's folder) or image (one); choices (list of distinct texts; missing or [] =
free-form answer); answer (an option's text, its letter, or its 0-based index as a number; the text itself for a free-form
question); id (optional). A text that is one option and the letter of another is refused.
Evaluate it with `--benchmarks own`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.base import Benchmark, Drop, image_paths, one_file
from fgrpo.files import read_jsonl
from fgrpo.options import letter_index
from fgrpo.types import Sample


def questions_file(name: str, title: str) -> Benchmark:
    """The benchmark of `<data root>/bench/<name>/questions.jsonl`; `name` is also that of its module."""
    return Benchmark(
        name, title, name, "your own questions.jsonl", lambda folder, _: _read(folder, name), is_downloaded=False
    )


def _read(folder: Path, name: str) -> Iterator[Sample | Drop]:
    path = one_file(folder, "questions.jsonl", name)
    for n, row in enumerate(read_jsonl(path, torn_tail_ok=False)):
        if not isinstance(row, dict):
            yield Drop("not an object")
            continue
        images = row.get("images") or ([row["image"]] if row.get("image") else [])
        choices = _choices(row.get("choices"))
        if choices is None:
            yield Drop("the choices are no list of distinct texts")
            continue
        answer = _gold(row.get("answer"), choices)
        question = row.get("question")
        if not isinstance(question, str) or not question.strip() or not isinstance(images, list) or answer is None:
            yield Drop("no question, or an answer that is none of the choices")
            continue
        try:
            paths = image_paths(path.parent, images)
        except ValueError as error:
            yield Drop(str(error))
            continue
        group = {"group": str(row["group"])} if row.get("group") else {}
        yield Sample(f"{name}/test/{row.get('id', n)}", paths, question.strip(), choices, answer, meta=group)


def _choices(found: Any) -> tuple[str, ...] | None:
    """The option texts, () for a free-form question; None if they are no list of distinct, non-empty texts."""
    if found is None or found == []:
        return ()
    if not isinstance(found, list) or not all(isinstance(choice, str) and choice.strip() for choice in found):
        return None
    choices = tuple(choice.strip() for choice in found)
    return choices if len(set(choices)) == len(choices) else None


def _gold(answer: Any, choices: tuple[str, ...]) -> str | None:
    """The gold text; None if it is none of the choices, or one by its text and another by its letter."""
    if isinstance(answer, int) and not isinstance(answer, bool) and choices:
        return choices[answer] if 0 <= answer < len(choices) else None
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not isinstance(answer, str) and not (is_number and not choices):
        return None
    text = str(answer).strip()
    if not choices:
        return text or None
    index = letter_index(text, choices)
    by_letter = None if index is None else choices[index]
    if text in choices:
        return text if by_letter in (None, text) else None
    return by_letter


BENCHMARK = questions_file("own", "own")
