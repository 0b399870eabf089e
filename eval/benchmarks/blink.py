"""BLINK, spatial tasks (BLINK-Benchmark/BLINK, split val): 642 questions on one to four images; beside the paper's seven.

Files `<task>/val-*.parquet` of five of the 14 tasks: idx, sub_task, question, prompt, choices (list), answer "(A)", image_1 to
image_4 (null where there is none). The answers of the test split are hidden. `question` leaves out what only `prompt` says ("two
points are circled …"), so the prompt without its options is the question. Other harnesses show the prompt too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.base import Benchmark, Drop, distinct_choices, one_file, parquet_rows, save_image
from fgrpo.options import UnclearOptions, letter_index, split_options
from fgrpo.types import Sample

TASKS = ("Counting", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation")
LEAST_IMAGES = {"Multi-view_Reasoning": 2}  # of a question; 1 for the other tasks
IMAGES = tuple(f"image_{n}" for n in range(1, 5))
COLUMNS = ("question", "prompt", "choices", "answer", *IMAGES)
_SELECT = re.compile(r"\s*select from the following (?:choices|options)\s*[.:]?\s*$", re.IGNORECASE)


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    paths = {task: one_file(folder / task, "val-*.parquet", f"blink, task {task}") for task in TASKS}
    for task, path in paths.items():
        for n, row in enumerate(parquet_rows([path], COLUMNS, "blink")):
            try:
                yield _sample(task, n, row, cache)
            except ValueError as error:
                yield Drop(str(error))


def _sample(task: str, n: int, row: Mapping[str, Any], cache: Path) -> Sample:
    """One question. Raises ValueError with the reason why its row cannot be used."""
    choices = distinct_choices(row["choices"])
    gold = letter_index(str(row["answer"]), choices)
    if gold is None:
        raise ValueError("the answer is no letter of the choices")
    question = _question(row, choices)
    images = tuple(save_image(data, cache, f"{task}-{n:05d}-{k}") for k, data in enumerate(_images(task, row)))
    return Sample(
        f"blink/val/{task}.{n}", images, question, choices, choices[gold], meta={"task": task, "idx": row.get("idx")}
    )


def _question(row: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """The prompt without its options; the bare question where the prompt does not letter any."""
    try:
        stem, options = split_options(str(row["prompt"] or ""))
    except UnclearOptions:
        stem, options = "", ()
    if options and tuple(map(_plain, options)) != tuple(map(_plain, choices)):
        raise ValueError("the options of the prompt are not its choices")
    question = _SELECT.sub("", stem) if options else str(row["question"] or "").strip()
    if not question:
        raise ValueError("no question")
    return question


def _plain(option: str) -> str:
    return " ".join(option.split()).casefold().rstrip(".")


def _images(task: str, row: Mapping[str, Any]) -> list[Any]:
    """The images of a row in order. Raises ValueError if one is missing in between, or the task needs more."""
    held = [row[name] for name in IMAGES]
    images = [image for image in held if image is not None]
    if held[: len(images)] != images:
        raise ValueError("an image in between is missing")
    if len(images) < LEAST_IMAGES.get(task, 1):
        raise ValueError(f"{len(images)} images, fewer than the task has")
    return images


BENCHMARK = Benchmark(
    "blink", "BLINK (spatial)", "BLINK", "the val files of five tasks of BLINK-Benchmark/BLINK", _read
)
