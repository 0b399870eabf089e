"""VisCoT (deepcs233/Visual-CoT): `metadata/<set>_cot_train.jsonl`, free-form answers, boxes in original pixels.

Document sets are dropped. 181 image names occur in several sets, so an image is first looked up in its own set's folder
(TextCap's images are in TextVQA's folder). Otherwise it is looked up by name in all folders, and dropped as ambiguous if several
contain it. Free-form answers become multiple choice; sentences (flickr30k) are dropped. Appendix A.3; Section 3.1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_curation.multiple_choice import MAX_WORDS, AnswerPool, core, make_choices, words
from data_curation.source import (
    Context,
    Drop,
    Source,
    Tally,
    boxes_of,
    convert,
    image_below,
    image_size,
    text_of,
    tidy_boxes,
)
from fgrpo.files import files_below
from fgrpo.types import Sample

DOCUMENT_SETS = ("docvqa", "dude", "infographicsvqa", "sroie")
FOLDERS = {
    "textcap": ("textvqa", "textcap"),
    "visual7w": ("visual7w", "v7w"),
}  # folders that may contain a set's images
TREES = ("cot_images", "cot_image_data", "images", "cot", ".")
ENDING = "_cot_train.jsonl"


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "metadata").glob(f"*{ENDING}"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 0, record); the record is None if the line is not a JSON object."""
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


class ImageIndex:
    """Locates the image of a record below the data set's folder."""

    def __init__(self, folder: Path) -> None:
        self.tree = next((folder / name for name in TREES if (folder / name).is_dir()), folder)
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, kind: str, name: Any, tally: Tally) -> Path:
        """The path of image `name` of set `kind`.

        Raises:
            Drop: missing_image, ambiguous_image or image_path_leads_out.
        """
        for folder in FOLDERS.get(kind, (kind,)):
            try:
                return image_below(self.tree / folder, name)
            except Drop as drop:
                if str(drop) != "missing_image":
                    raise
        if self._by_name is None:
            self._by_name = {}
            for path in files_below(self.tree):
                if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                    self._by_name.setdefault(path.name, []).append(path)
        candidates = self._by_name.get(Path(str(name)).name, [])
        if not candidates:
            raise Drop("missing_image")
        if len(candidates) > 1:
            raise Drop("ambiguous_image")
        tally.notes["image_in_another_folder"] += 1
        return candidates[0]


def _other_correct_answers(record: dict[str, Any]) -> tuple[str, ...]:
    answers = record.get("possible_answers")
    return tuple(a for a in answers if isinstance(a, str)) if isinstance(answers, list) else ()


def _check_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    if (record.get("width"), record.get("height")) not in (size, (None, None)):
        raise Drop("image_size_differs")  # its boxes would refer to pixels of another image


def _read(context: Context) -> Iterator[Sample]:
    kinds = frozenset(p.name.removesuffix(ENDING) for p in _files(context.folder)) - set(DOCUMENT_SETS)
    pool, image_index = AnswerPool(), ImageIndex(context.folder)
    for _, item in _records(context, kinds):  # first pass: collect answers as distractors
        record = item["record"] or {}
        if isinstance(record.get("question"), str) and isinstance(record.get("answer"), str):
            pool.add(item["kind"], record["question"], record["answer"])

    def sample(record_id: str, item: dict[str, Any]) -> Sample:
        kind, record = item["kind"], item["record"]
        if kind in DOCUMENT_SETS:
            raise Drop("document_set")
        if record is None:
            raise Drop("not_json")
        question = text_of(record, "question")
        answer = core(question, text_of(record, "answer"))
        if len(words(answer)) > MAX_WORDS:
            raise Drop("answer_is_a_sentence")
        rng = random.Random(f"{context.seed}/{record_id}/choices")
        choices = make_choices(kind, question, answer, pool, rng, context.choices, _other_correct_answers(record))
        if choices is None:
            raise Drop("no_distractors")
        path = image_index.find(kind, record.get("image"), context.tally)
        size = image_size(path)
        _check_size(record, size)
        coordinates = record.get("bboxs")
        boxes = boxes_of(coordinates if isinstance(coordinates, list) else [], context.tally)
        boxes = tidy_boxes(boxes, size, context.tally)
        return Sample(record_id, (str(path),), question, choices, answer, boxes or None, {"set": kind})

    yield from convert(_records(context), sample, context.tally)


SOURCE = Source("viscot", "VisCoT", "deepcs233/Visual-CoT (Apache-2.0; images of its sets)", _files, _read)
