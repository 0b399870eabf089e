"""VLMEvalKit: `<model>_<dataset>.xlsx`, or .tsv and .json (PRED_FORMAT), and the `…_result` file of its judge, which adds `hit`.

Columns: those of the data set without its image (index, question, A, B, …, answer, category), prediction, with SPLIT_THINK
also thinking, and in a result file hit (0 or 1) and log. Read as commit e8e78f05 (August 2026) writes them. A cell of an .xlsx file
holds at most 32,767 characters: a prediction of that length was cut off. Other cut-offs are not in the files. Images are in the data set's own file,
`LMUData/<dataset>.tsv` (`read_images`).
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.base import tsv_rows
from eval.external.rows import Format, Row, plain, share
from fgrpo.errors import UserError
from fgrpo.response import with_trace

FAILED = "Failed to obtain answer"  # how a prediction begins that no attempt gave
LONGEST_CELL = 32_767
_SHORTEST_IMAGE = 64  # a shorter image column names the index of the row that holds it
SUFFIXES = (".xlsx", ".tsv", ".json", ".jsonl")


def _read(path: Path, metric: str | None) -> Iterator[Row]:
    for number, line in enumerate(_table(path), 1):
        missing = [key for key in ("index", "question", "prediction") if key not in line]
        if missing:
            raise UserError(f"{path}, row {number} has no {', '.join(missing)}: is it a prediction file of VLMEvalKit?")
        if metric is not None and metric not in line:
            raise UserError(f"{path} has no column {metric!r}; it has: {', '.join(map(str, line))}")
        text = plain(line["prediction"])
        is_cut = path.suffix == ".xlsx" and len(text) >= LONGEST_CELL
        has_failed = text.startswith(FAILED)
        yield Row(
            plain(line["index"]),
            "" if has_failed else with_trace(text, plain(line.get("thinking"))),
            target=plain(line.get("answer")),
            question=plain(line["question"]),
            choices=_choices(line),
            theirs=share(line.get(metric or "hit")),
            finish="error" if has_failed else "length" if is_cut else None,
            group=plain(line.get("g_index")),
        )


def _choices(line: Mapping[str, Any]) -> tuple[str, ...]:
    """The options in the columns A, B, … up to the first empty one."""
    options = []
    for letter in string.ascii_uppercase:
        if not (option := plain(line.get(letter))):
            break
        options.append(option)
    return tuple(options) if len(options) > 1 else ()


def _table(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a file by column. UserError: it cannot be read."""
    try:
        if path.suffix == ".xlsx":
            return list(_sheet(path))
        if path.suffix == ".tsv":
            return list(tsv_rows(path))
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("it is no list of objects")
        return rows
    except (OSError, ValueError, KeyError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a file of VLMEvalKit ({error})") from error


def _sheet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an .xlsx file's first sheet. Raises ValueError for a broken file."""
    import zipfile
    from xml.etree.ElementTree import ParseError

    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise UserError(
            f"reading {path} needs openpyxl: `pip install openpyxl`, or let VLMEvalKit write PRED_FORMAT=tsv"
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        heads = [plain(cell) for cell in next(rows, ())]
        for row in rows:
            yield dict(zip(heads, row, strict=False))
        book.close()
    except (zipfile.BadZipFile, ParseError, InvalidFileException, IndexError) as error:
        raise ValueError(f"no .xlsx file: {error}") from error


def read_images(path: Path) -> dict[str, tuple[bytes | str, ...]]:
    """The images of a data set's .tsv file by index: bytes (image), or the names of files (image_path).

    Raises:
        UserError: the file cannot be read, or has no such column.
    """
    found: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in _table(path):
        index = plain(line.get("index"))
        found[index], names[index] = plain(line.get("image")), plain(line.get("image_path"))
    if not any(found.values()) and not any(names.values()):
        raise UserError(
            f"{path} has neither images nor image_path; name the data set's own file, LMUData/<dataset>.tsv"
        )
    out: dict[str, tuple[bytes | str, ...]] = {}
    for index, image in found.items():
        text = found.get(image, "") if 0 < len(image) <= _SHORTEST_IMAGE else image
        decoded = tuple(map(_decoded, _listed(text)))
        named = tuple(_listed(names[index]))
        if decoded and all(decoded):
            out[index] = tuple(image for image in decoded if image)
        elif named:
            out[index] = named
    return out


def _listed(text: str) -> list[str]:
    """The entries of a cell: one text, or a list of texts as Python writes it."""
    if not text:
        return []
    if text.startswith("["):
        try:
            entries = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return []
        return [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    return [text]


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _task(path: Path) -> str:
    """Unknown: both names in `<model>_<dataset>` may hold underscores."""
    return ""


FORMAT = Format("VLMEvalKit", lambda path: path.suffix in SUFFIXES and not path.name.startswith("."), _read, _task)
