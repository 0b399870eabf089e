"""TreeBench (HaochenWang/TreeBench): 405 questions on dense scenes, with annotated boxes; beside the paper's seven.

File `TreeBench.tsv`: index, image (base64), question, the options in the columns A, B, … and again as the text of "multi-choice
options", answer (a letter), category ("Perception/OCR"), l2-category, target_instances (a Python list of [x1, y1, x2, y2] in pixels
of the image). The questions of Perception/OCR lie in the image, options too, and have empty columns A, B, …; other markers than
"A." occur in their texts. In at least one row the text of B stands behind that of A, and the columns after it are shifted.

The boxes are treated as those of training (`fgrpo.boxes.clipped`), so spatial grounding is measured outside the training sources
by the function that trains. TreeBench's own mIoU is another measure: the best IoU of any predicted box, averaged over targets.
"""

from __future__ import annotations

import ast
import csv
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.base import (
    NOTED,
    Benchmark,
    Drop,
    distinct_choices,
    from_base64,
    one_file,
    save_image,
    tsv_rows,
)
from fgrpo.boxes import box_of, clipped
from fgrpo.errors import UserError
from fgrpo.image_files import ImageProblem, read_header
from fgrpo.options import UnclearOptions, letter_index, letters, split_options
from fgrpo.types import Box, Sample

TEXT = "multi-choice options"
COLUMNS = ("image", "question", "answer", "category", "target_instances")
DRAWN_LEAST = 4  # options of a question whose choices are in its image and cannot be read from the file
_LETTERED = re.compile(r"^\s*([A-Z])(?:[.):]\s*|\s+)\S", re.MULTILINE)


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "TreeBench.tsv", "treebench")
    for n, row in enumerate(_rows(path)):
        try:
            yield _sample(n, row, cache)
        except ValueError as error:
            yield Drop(str(error))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The file's rows. UserError: it cannot be read, or has other columns."""
    try:
        for n, row in enumerate(tsv_rows(path)):
            if n == 0:
                _check_columns(path, row)
            yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"benchmark treebench: {path} cannot be read ({error}); download it again") from error


def _check_columns(path: Path, row: Mapping[str, str]) -> None:
    missing = [name for name in COLUMNS if name not in row]
    if "A" not in row and TEXT not in row:
        missing.append(f"A or {TEXT}")
    if missing:
        raise UserError(f"benchmark treebench: {path} has no column {', '.join(missing)}; is this the right file?")


def _sample(n: int, row: Mapping[str, str], cache: Path) -> Sample:
    """One question. Raises ValueError with the reason why its row cannot be used."""
    question = row["question"].strip()
    if not question:
        raise ValueError("no question")
    choices, gold = _choices_and_gold(row)
    image = save_image(from_base64(row["image"]), cache, f"{n:05d}")
    boxes, noted = _boxes(row["target_instances"], image)
    meta: dict[str, Any] = {"task": row["category"].strip(), "sub_task": row.get("l2-category", "").strip()}
    if noted:
        meta[NOTED] = noted
    sample_id = f"treebench/test/{row.get('index', '').strip() or n}"
    return Sample(sample_id, (image,), question, choices, choices[gold], boxes or None, meta)


def _choices_and_gold(row: Mapping[str, str]) -> tuple[tuple[str, ...], int]:
    """The options and the index of the right one.

    The columns A, B, … count where they are whole and hold the answer's letter, else the text of all options. Where neither can
    be read and the columns are empty, the options are in the image: the options are then their letters.

    Raises:
        ValueError: none of these holds the answer's letter; the message is the reason.
    """
    columns = _columns(row)
    readings = [columns if _are_whole(columns) else (), _in_text(row.get(TEXT, ""))]
    if not any(columns):
        named = [ord(mark) - ord("A") + 1 for mark in _LETTERED.findall(row.get(TEXT, ""))]
        readings.append(letters(max(DRAWN_LEAST, *named, 0)))
    for choices in readings:
        gold = letter_index(row["answer"], choices)
        if gold is not None:
            return choices, gold
    raise ValueError("the answer is no letter of the options" if any(readings) else "the options cannot be read")


def _columns(row: Mapping[str, str]) -> tuple[str, ...]:
    """The cells of A, B, … up to the last that is not empty."""
    cells = [(row.get(letter) or "").strip() for letter in string.ascii_uppercase]
    return tuple(cells[: max((i + 1 for i, cell in enumerate(cells) if cell), default=0)])


def _are_whole(columns: tuple[str, ...]) -> bool:
    """Whether the cells are distinct options, none of which has the next one behind it ("on the left. B. on the right")."""
    try:
        distinct_choices(columns)
    except ValueError:
        return False
    return not any(re.search(rf"\s{letters(i + 2)[-1]}[.):]\s", cell) for i, cell in enumerate(columns))


def _in_text(text: str) -> tuple[str, ...]:
    """The options of a text that holds nothing else; () if it cannot be read in one way."""
    try:
        before, options = split_options(text)
    except UnclearOptions:
        return ()
    return () if before else options


def _boxes(text: str, image: str) -> tuple[tuple[Box, ...], list[str]]:
    """(boxes in pixels of the file `image`, what was left out of them).

    Raises:
        ValueError: the text is no list of boxes, the image cannot be read, or every box lies beyond it.
    """
    found = _annotated(text)
    try:
        header = read_header(image)
    except ImageProblem as problem:
        raise ValueError(problem.reason) from problem
    if found and header.orientation != 1:  # it is shown upright, and nothing says in which pixels its boxes are
        return (), ["boxes left out: turned_by_exif"] * len(found)
    boxes: list[Box] = []
    noted = []
    for box in found:
        inside = clipped(box, (header.width, header.height)) if box.is_valid else None
        if inside is None:
            noted.append(f"boxes left out: {'beyond_image' if box.is_valid else 'without_area'}")
        elif inside not in boxes:
            boxes.append(inside)
    if not boxes and any(box.is_valid for box in found):
        raise ValueError("boxes_beyond_image")
    return tuple(boxes), noted


def _annotated(text: str) -> list[Box]:
    """The boxes of a Python list of [x1, y1, x2, y2], or of {"bbox": […]}; none for an empty cell.

    Raises:
        ValueError: it is another text; the message is the reason.
    """
    if not text.strip():
        return []
    try:
        entries = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("target_instances is no list of boxes") from error
    numbers = (
        [entry.get("bbox") if isinstance(entry, dict) else entry for entry in entries]
        if isinstance(entries, list)
        else [None]
    )
    boxes = [box_of(each) if isinstance(each, list | tuple) else None for each in numbers]
    if None in boxes:
        raise ValueError("target_instances is no list of boxes")
    return [box for box in boxes if box is not None]


BENCHMARK = Benchmark("treebench", "TreeBench", "TreeBench", "HaochenWang/TreeBench", _read)
