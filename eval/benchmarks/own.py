"""The user's own benchmark: `<data root>/bench/own/questions.jsonl`, one question per line; not a column of Table 1.

Keys: question; images (list of paths below the file's folder) or image (one); choices (list; missing or [] = free-form answer);
answer (an option's text, its letter, or its 0-based index; the text itself for a free-form question); id (optional).
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


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "questions.jsonl", "own")
    for n, row in enumerate(read_jsonl(path, torn_tail_ok=False)):
        images = row.get("images") or ([row["image"]] if row.get("image") else [])
        choices = tuple(str(c).strip() for c in row.get("choices") or ())
        answer = _gold(row.get("answer"), choices)
        if not row.get("question") or not isinstance(images, list) or answer is None:
            yield Drop("no question, or an answer that is none of the choices")
            continue
        try:
            paths = image_paths(path.parent, images)
        except ValueError as error:
            yield Drop(str(error))
            continue
        group = {"group": str(row["group"])} if row.get("group") else {}
        yield Sample(f"own/test/{row.get('id', n)}", paths, str(row["question"]).strip(), choices, answer, meta=group)


def _gold(answer: Any, choices: tuple[str, ...]) -> str | None:
    """The gold text; None if it is none of the choices."""
    if isinstance(answer, int) and not isinstance(answer, bool) and choices:
        return choices[answer] if 0 <= answer < len(choices) else None
    text = str(answer if answer is not None else "").strip()
    if not choices or text in choices:
        return text or None
    index = letter_index(text, choices)
    return None if index is None else choices[index]


BENCHMARK = Benchmark("own", "own", "own", "your own questions.jsonl", _read)
