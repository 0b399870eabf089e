"""OmniSpatial (qizekun/OmniSpatial): dynamics, interaction, logic, perspective; 1533 questions; column OmniSpatial.

File `data.json`: id "0_0", question, options (list), answer (0-based index), task_type, sub_task_type. There is no image
field: the image is `<task_type>/<id before "_">.png`, and ids repeat across task types. About 229 rows have no options and a text
answer: they stay, as free-form questions. The official code answers "A" if it cannot parse a reply; this code never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.base import Benchmark, Drop, one_file
from fgrpo.errors import UserError
from fgrpo.types import Sample


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "data.json", "omnispatial")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"benchmark omnispatial: {path} is not JSON ({error}); download it again") from error
    if not isinstance(rows, list):
        raise UserError(f"benchmark omnispatial: {path} must hold a list of questions, not a {type(rows).__name__}")
    for row in rows:
        missing = [key for key in ("id", "question", "task_type", "answer") if row.get(key) in (None, "")]
        if missing:
            yield Drop(f"no {', '.join(missing)}")
            continue
        choices = tuple(str(o).strip() for o in row.get("options") or ())
        answer = _gold(row["answer"], choices)
        if answer is None:
            yield Drop("the answer is no index of the options")
            continue
        scene = str(row["id"]).split("_", 1)[0]
        meta = {"task": row["task_type"], "sub_task": row.get("sub_task_type")}
        image = str(path.parent / row["task_type"] / f"{scene}.png")
        yield Sample(
            f"omnispatial/test/{row['task_type']}.{row['id']}",
            (image,),
            row["question"].strip(),
            choices,
            answer,
            meta=meta,
        )


def _gold(answer: Any, choices: tuple[str, ...]) -> str | None:
    """The gold option's text: by index if there are options (the number may be a string), else the text itself."""
    if not choices:
        return str(answer).strip() if isinstance(answer, str) and answer.strip() else None
    try:
        index = int(answer)
    except (TypeError, ValueError):
        return None
    return choices[index] if 0 <= index < len(choices) else None


BENCHMARK = Benchmark("omnispatial", "OmniSpatial", "OmniSpatial", "qizekun/OmniSpatial", _read)
