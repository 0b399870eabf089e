"""VGR (BytedanceDouyinContent/VGR, text CC0): conversations whose reply contains the boxes; images of LLaVA-NeXT's tree.

Parquet files `vgr_shortcot` and `vgr_longcot`: image (path below `llava_next_raw_format/`), conversations. A box in the reply is
`<SOT>[x1, y1, x2, y2]<EOT><image>`; lower-case tags, unpaired tags and integer pixels occur. A box is in units of the image if
no number exceeds 1 (beyond the excess of a box that crosses the edge), else in pixels. Sets of documents, diagrams and charts
are dropped. The short form rewrites the long one, so the second record of a question about an image is dropped. Of a
conversation with several exchanges only the first is used, which is noted. Appendix A.3.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any

from data_curation.gold import gold_index, is_open, read_gold
from data_curation.multiple_choice import MAX_WORDS, AnswerPool, core, make_choices, words
from data_curation.source import (
    Context,
    Drop,
    Source,
    Tally,
    convert,
    image_below,
    image_size,
    options_in,
    parquet_files,
    parquet_rows,
    tidy_boxes,
)
from fgrpo import box_forms
from fgrpo.boxes import box_of
from fgrpo.types import Box, Sample

COLUMNS = ("image", "conversations")
TREES = ("llava_next_raw_format", "images", ".")
NOT_NATURAL = ("ai2d", "chartqa", "dvqa", "docvqa", "ocrvqa")
_NUMBER = r"\s*+(-?(?:\d++(?:\.\d++)?|\.\d++))\s*+"
_LIST = rf"\[{','.join([_NUMBER] * 4)}\]"
_BOX = re.compile(rf"<sot>\s*{_LIST}(?:\s*<eot>)?|{_LIST}\s*<eot>", re.IGNORECASE)
_TAG = re.compile(r"</?\s*(?:sot|eot|image)\s*>", re.IGNORECASE)
_DIRECT = re.compile(
    r"(?:(?<!\s)\s++)?answer (?:the question )?(?:with|using) (?:the option's letter|a single word)[^\n]{0,300}$",
    re.IGNORECASE,
)


def read_boxes(reply: str, tally: Tally) -> tuple[Box, ...]:
    """The boxes of a reply. Noted: "orphan_tag", once per reply with a tag without a readable box; "box_in_another_form"."""
    boxes = []
    for match in _BOX.finditer(reply):
        box = box_of([v for v in match.groups() if v is not None], unit_allowed=True)
        if box is not None:
            boxes.append(box)
    rest = _BOX.sub(" ", reply)
    if re.search(r"<\s*(?:sot|eot)\s*>", rest, re.IGNORECASE):
        tally.notes["orphan_tag"] += 1
    if unread := box_forms.unread(rest, "sot").total():
        tally.notes["box_in_another_form"] += unread
    return tuple(boxes)


def read_answer(reply: str) -> str:
    """The final answer of a reply (`data_curation.gold.read_gold`), without its boxes. May be empty."""
    return read_gold(_TAG.sub(" ", _BOX.sub(" ", reply)))


def _turns(row: dict[str, Any]) -> tuple[str, str]:
    """Question and reply of the first exchange."""
    turns = row["conversations"] or []
    human = next((t.get("value") for t in turns if t and t.get("from") == "human"), None)
    reply = next((t.get("value") for t in turns if t and t.get("from") == "gpt"), None)
    if not human or not reply:
        raise Drop("no_exchange")
    question = _DIRECT.sub("", _TAG.sub(" ", human).strip()).strip()
    if not question:
        raise Drop("no_question")
    return question, reply


def _records(context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in parquet_files(context.folder):
        kind = "longcot" if "long" in path.name.lower() else "shortcot"
        for n, row in enumerate(parquet_rows(path, COLUMNS)):
            yield f"vgr/{kind}/{path.stem}.{n}" if path.stem != f"vgr_{kind}" else f"vgr/{kind}/{n}", row


def _set_of(image: Any) -> str:
    if not isinstance(image, str) or not image:
        raise Drop("no_image")
    first = re.sub(r"[^a-z0-9]", "", image.lower().split("/", 1)[0])
    if any(first.startswith(name) for name in NOT_NATURAL):
        raise Drop("not_natural_images")
    return first


def _read(context: Context) -> Iterator[Sample]:
    tree = next((context.folder / name for name in TREES if (context.folder / name).is_dir()), context.folder)
    pool, seen = AnswerPool(), set[bytes]()
    for _, row in _records(context):  # first pass: collect answers as distractors
        try:
            pool.add(_set_of(row["image"]), *_first_pass(row))
        except Drop:
            continue

    def sample(record_id: str, row: dict[str, Any]) -> Sample:
        group = _set_of(row["image"])
        text, reply = _turns(row)
        if sum(turn.get("from") == "human" for turn in row["conversations"] if turn) > 1:
            context.tally.notes["only_first_exchange"] += 1
        question, choices = options_in(text)
        answer = read_answer(reply)
        if not answer:
            raise Drop("no_answer")
        rng = random.Random(f"{context.seed}/{record_id}/choices")
        if choices:
            index = gold_index(answer, choices)
            if index is None:
                raise Drop("answer_not_among_options")
            answer = choices[index]
        else:
            answer = core(question, answer)
            if is_open(answer):
                raise Drop("open_answer")
            if len(words(answer)) > MAX_WORDS:
                raise Drop("answer_is_a_sentence")
            generated = make_choices(group, question, answer, pool, rng, context.choices)
            if generated is None:
                raise Drop("no_distractors")
            choices = generated
        path = image_below(tree, row["image"])
        boxes = tidy_boxes(read_boxes(reply, context.tally), image_size(path), context.tally)
        if not boxes:
            context.tally.notes["no_box"] += 1
        digest = hashlib.sha256(f"{row['image']}\n{question}".encode()).digest()[:12]
        if digest in seen:
            raise Drop("duplicate_question")
        seen.add(digest)
        return Sample(record_id, (str(path),), question, choices, answer, boxes or None, {"set": group})

    yield from convert(_records(context), sample, context.tally)


def _first_pass(row: dict[str, Any]) -> tuple[str, str]:
    question, reply = _turns(row)
    stem, choices = options_in(question)
    return stem, "" if choices else read_answer(reply)


SOURCE = Source("vgr", "VGR", "BytedanceDouyinContent/VGR (CC0; images of LLaVA-NeXT)", parquet_files, _read)
