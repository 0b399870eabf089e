"""VisCoT (deepcs233/Visual-CoT): `metadata/<set>_cot_train.jsonl`, free-form answers, boxes in original pixels.

Document sets are dropped. 181 image names occur in more than one set, so a picture is looked for in its own set's folder
(TextCap's pictures lie in TextVQA's); found elsewhere under a name that several folders hold, it is dropped as ambiguous.
Free-form answers become multiple choice; sentences (flickr30k) are dropped. Appendix A.3; Section 3.1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_curation.multiple_choice import MAX_WORDS, AnswerPool, clean, make_choices, words
from data_curation.source import (
    Context,
    Drop,
    Source,
    Tally,
    box_of,
    convert,
    picture_below,
    picture_size,
    text_of,
    tidy_boxes,
)
from fgrpo.types import Box, Sample

DOCUMENT_SETS = ("docvqa", "dude", "infographicsvqa", "sroie")
FOLDERS = {"textcap": ("textvqa", "textcap"), "visual7w": ("visual7w", "v7w")}  # where a set's pictures may lie
TREES = ("cot_images", "cot_image_data", "images", "cot", ".")
ENDING = "_cot_train.jsonl"


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "metadata").glob(f"*{ENDING}"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 0, record); None where the line is not a JSON object."""
    with path.open("rb") as lines:
        for n, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield n, record if isinstance(record, dict) else None


def _records(context: Context, kinds: frozenset[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _files(context.folder):
        kind = path.name.removesuffix(ENDING)
        if kinds is not None and kind not in kinds:
            continue
        for n, record in _lines(path):
            yield f"viscot/train/{kind}.{n}", {"kind": kind, "record": record}


class Pictures:
    """Finds the picture of a record below the data set's folder."""

    def __init__(self, folder: Path) -> None:
        self.tree = next((folder / name for name in TREES if (folder / name).is_dir()), folder)
        self._elsewhere: dict[str, list[Path]] | None = None

    def find(self, kind: str, name: Any, tally: Tally) -> Path:
        """The picture `name` of set `kind`. Drop: missing_image, ambiguous_image, image_path_leads_out."""
        for folder in FOLDERS.get(kind, (kind,)):
            try:
                return picture_below(self.tree / folder, name)
            except Drop as drop:
                if str(drop) != "missing_image":
                    raise
        if self._elsewhere is None:
            self._elsewhere = {}
            for path in sorted(p for p in self.tree.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
                self._elsewhere.setdefault(path.name, []).append(path)
        others = self._elsewhere.get(Path(str(name)).name, [])
        if not others:
            raise Drop("missing_image")
        if len(others) > 1:
            raise Drop("ambiguous_image")
        tally.notes["image_in_another_folder"] += 1
        return others[0]


def _boxes(record: dict[str, Any], tally: Tally) -> tuple[Box, ...]:
    cells = record.get("bboxs")
    boxes = []
    for cell in cells if isinstance(cells, list) else []:
        box = box_of(cell)
        if box is None:
            tally.notes["unreadable_box"] += 1
        else:
            boxes.append(box)
    return tuple(boxes)


def _also_true(record: dict[str, Any]) -> tuple[str, ...]:
    listed = record.get("possible_answers")
    return tuple(a for a in listed if isinstance(a, str)) if isinstance(listed, list) else ()


def _check_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    if (record.get("width"), record.get("height")) not in (size, (None, None)):
        raise Drop("image_size_differs")  # its boxes would be in pixels of another picture


def _read(context: Context) -> Iterator[Sample]:
    kinds = frozenset(p.name.removesuffix(ENDING) for p in _files(context.folder)) - set(DOCUMENT_SETS)
    pool, pictures = AnswerPool(), Pictures(context.folder)
    for _, item in _records(context, kinds):  # first pass: answers, to draw distractors from
        record = item["record"] or {}
        if isinstance(record.get("question"), str) and isinstance(record.get("answer"), str):
            pool.add(item["kind"], record["question"], record["answer"])

    def sample(record_id: str, item: dict[str, Any]) -> Sample:
        kind, record = item["kind"], item["record"]
        if kind in DOCUMENT_SETS:
            raise Drop("document_set")
        if record is None:
            raise Drop("not_json")
        question, answer = text_of(record, "question"), clean(text_of(record, "answer"))
        if len(words(answer)) > MAX_WORDS:
            raise Drop("answer_is_a_sentence")
        rng = random.Random(f"{context.seed}/{record_id}/choices")
        choices = make_choices(kind, question, answer, pool, rng, context.choices, _also_true(record))
        if choices is None:
            raise Drop("no_distractors")
        path = pictures.find(kind, record.get("image"), context.tally)
        size = picture_size(path)
        _check_size(record, size)
        boxes = tidy_boxes(_boxes(record, context.tally), size, context.tally)
        return Sample(record_id, (str(path),), question, choices, answer, boxes or None, {"set": kind})

    yield from convert(_records(context), sample, context.tally)


SOURCE = Source("viscot", "VisCoT", "deepcs233/Visual-CoT (Apache-2.0; pictures of its sets)", _files, _read)
