"""The traces as TRL's SFTTrainer wants them: sharegpt records -> {"prompt", "completion", "images"}, split by question.

A record is {"id", "sample_id", "messages": [user, assistant], "images": [paths]}; the pictures come before the user's text.
Records that are not of this form, or do not fit, are counted under a reason and left out. Rows with one and with two pictures
may be mixed. The validation part holds whole questions, so no question is on both sides.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS, image_tokens, with_images
from fgrpo.policy.tokens import special_token

TEMPLATE_TOKENS = 24  # what the chat template itself adds to a row, at most


@dataclass(frozen=True)
class Row:
    """One trace: the user's text, the assistant's text, the pictures in order."""

    id: str
    sample_id: str
    prompt: str
    completion: str
    images: tuple[str, ...]


def read_rows(path: str | Path, dropped: Counter[str], kinds: Collection[str] = ()) -> list[Row]:
    """The usable records of sft.jsonl, of these kinds of traces if any are named (a record without a kind counts as direct).

    Raises:
        UserError: the file is missing, or nothing in it is usable.
    """
    rows = []
    for record in read_jsonl(path):
        if kinds and record.get("kind", "direct") not in kinds:
            dropped["kind not in sft.traces"] += 1
            continue
        row = _row(record)
        if isinstance(row, str):
            dropped[row] += 1
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"{path} has no usable record ({dict(dropped)}); run `make mcts` again")
    return rows


def _row(record: Mapping[str, Any]) -> Row | str:
    """A row, or the reason why there is none."""
    messages, images = record.get("messages"), record.get("images")
    if not isinstance(messages, list) or [m.get("role") if isinstance(m, dict) else None for m in messages] != [
        "user",
        "assistant",
    ]:
        return "not one user and one assistant message"
    texts = [m.get("content") for m in messages]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "empty or no text"
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        return "no picture"
    if any(special_token(str(text)) for text in texts):
        return "special token written out in the text"
    if not all(Path(image).is_file() for image in images):
        return "picture file missing"
    row_id, sample_id = record.get("id"), record.get("sample_id")
    if not isinstance(row_id, str) or not isinstance(sample_id, str):
        return "no id"
    return Row(row_id, sample_id, str(texts[0]), str(texts[1]), tuple(images))


def fitting(
    rows: Sequence[Row], count_tokens: Callable[[str], int], limit: int, pixels: PixelBounds, dropped: Counter[str]
) -> list[Row]:
    """Rows of at most `limit` tokens, image tokens included: a longer one would be cut in the middle of its answer.

    Raises:
        UserError: none is left.
    """
    kept = []
    for row in rows:
        try:
            seen = sum(image_tokens(path, pixels) for path in row.images)
        except IMAGE_ERRORS:
            dropped["picture cannot be read"] += 1
            continue
        if count_tokens(row.prompt) + count_tokens(row.completion) + seen + TEMPLATE_TOKENS > limit:
            dropped["longer than sft.max_length"] += 1
        else:
            kept.append(row)
    if not kept:
        raise UserError(f"no trace fits sft.max_length = {limit} tokens; raise it")
    return kept


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, validation) by question: about `share` of the questions validate, chosen by a hash of seed and sample id.

    At least one question validates if `share` is above 0 and there are two; a question's side depends on nothing else.
    """
    keys = {row.sample_id: _unit(f"{seed}:{row.sample_id}") for row in rows}
    held = {sample for sample, key in keys.items() if key < share}
    if not held and share > 0 and len(keys) > 1:
        held = {min(keys, key=lambda sample: keys[sample])}
    if held == set(keys):
        held.discard(max(keys, key=lambda sample: keys[sample]))
    return [r for r in rows if r.sample_id not in held], [r for r in rows if r.sample_id in held]


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Chat-form rows; the pictures are decoded when a row is read."""
    table = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": r.prompt}] for r in rows],
            "completion": [[{"role": "assistant", "content": r.completion}] for r in rows],
            "images": [list(r.images) for r in rows],
        }
    )
    return table.with_transform(with_images)
