"""SFT records as rows for TRL's SFTTrainer: sharegpt records -> {"prompt", "completion", "images"}, split by question.

A record is {"id", "sample_id", "messages": [user, assistant], "images": [paths]}; the images precede the user's text. Malformed
or overlong records are dropped and counted by reason. Rows with one image and rows with two may be mixed. The split is by
question, so no question is in both the training and the validation part.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS, with_images
from fgrpo.policy.backbone import Backbone
from fgrpo.policy.tokens import special_token

TOGETHER = 4  # traces of a question, or of a length, that follow one another; Table 4's batch of one device
POOL = 32 * TOGETHER  # traces among which those of about equal length are looked for (`order_by_length`)
TEMPLATE_TOKENS = 24  # upper bound of the tokens that the chat template adds to a row


@dataclass(frozen=True)
class Row:
    """One trace: the user's text, the assistant's text, and the image paths in order; `fitting` counts its tokens."""

    id: str
    sample_id: str
    prompt: str
    completion: str
    images: tuple[str, ...]
    tokens: int = field(default=0, compare=False)
    image_tokens: int = field(default=0, compare=False)


def read_rows(path: str | Path, dropped: Counter[str], kinds: Collection[str] = ()) -> list[Row]:
    """The usable records of sft.jsonl.

    Args:
        dropped: counts dropped records by reason.
        kinds: kinds of traces to use; all if empty. A record without a kind is direct.

    Raises:
        UserError: the file is missing, or contains no usable record.
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
        raise UserError(f"{path} has no usable record ({dict(dropped)}). Rerun `make mcts`")
    return rows


def _row(record: Mapping[str, Any]) -> Row | str:
    """A row, or the reason why the record is dropped."""
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
        return "no image"
    if any(special_token(str(text)) for text in texts):
        return "special token written out in the text"
    if not all(Path(image).is_file() for image in images):
        return "image file missing"
    row_id, sample_id = record.get("id"), record.get("sample_id")
    if not isinstance(row_id, str) or not isinstance(sample_id, str):
        return "no id"
    return Row(row_id, sample_id, str(texts[0]), str(texts[1]), tuple(images))


def fitting(
    rows: Sequence[Row],
    count_tokens: Callable[[str], int],
    limit: int,
    pixels: PixelBounds,
    family: Backbone,
    dropped: Counter[str],
) -> list[Row]:
    """Rows of at most `limit` tokens including image tokens; a longer row would be truncated inside its answer.

    Args:
        count_tokens: number of tokens of a text.
        pixels: the processor's bounds.
        family: the model's.
        dropped: counts dropped rows by reason.

    Raises:
        UserError: no row fits.
    """
    fitting_rows = []
    for row in rows:
        try:
            image_token_count = sum(family.prompt_tokens(path, pixels) for path in row.images)
        except IMAGE_ERRORS:
            dropped["image cannot be read"] += 1
            continue
        tokens = count_tokens(row.prompt) + count_tokens(row.completion) + image_token_count + TEMPLATE_TOKENS
        if tokens > limit:
            dropped["longer than sft.max_length"] += 1
        else:
            fitting_rows.append(replace(row, tokens=tokens, image_tokens=image_token_count))
    if not fitting_rows:
        raise UserError(f"no trace fits in sft.max_length = {limit} tokens. Raise sft.max_length")
    return fitting_rows


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, validation) rows, split by question.

    About `share` of the questions are for validation, chosen by a hash of seed and sample id only. If `share` is positive and
    there are at least two questions, both parts get at least one.
    """
    keys = {row.sample_id: _unit(f"{seed}:{row.sample_id}") for row in rows}
    validation_ids = {sample for sample, key in keys.items() if key < share}
    if not validation_ids and share > 0 and len(keys) > 1:
        validation_ids = {min(keys, key=lambda sample: keys[sample])}
    if validation_ids == set(keys):
        validation_ids.discard(max(keys, key=lambda sample: keys[sample]))
    return [r for r in rows if r.sample_id not in validation_ids], [r for r in rows if r.sample_id in validation_ids]


def order(rows: Sequence[Row], length: int, seed: int) -> list[int]:
    """`length` indices of rows for a whole run, in which up to `TOGETHER` traces of a question follow one another.

    Passes over all rows, one after the other. In each, a question's traces are shuffled and cut into pieces of `TOGETHER`; what
    is left over is put together, and the pieces are shuffled. A last piece that is not full moves into the next pass. So a
    resumed or extended run goes on in the same order, whatever its micro-batches.
    """
    rng = random.Random(f"sft-order:{seed}")
    questions: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        questions.setdefault(row.sample_id, []).append(index)
    indices: list[int] = []
    rest: list[int] = []
    while len(indices) < length:
        pieces = []
        for question in rng.sample(sorted(questions), len(questions)):
            traces = rng.sample(questions[question], len(questions[question]))
            full = len(traces) - len(traces) % TOGETHER
            pieces += [traces[at : at + TOGETHER] for at in range(0, full, TOGETHER)]
            rest += traces[full:]
        full = len(rest) - len(rest) % TOGETHER
        pieces += [rest[at : at + TOGETHER] for at in range(0, full, TOGETHER)]
        rest = rest[full:]
        rng.shuffle(pieces)
        indices += [index for piece in pieces for index in piece]
    return indices[:length]


def order_by_length(rows: Sequence[Row], length: int, seed: int) -> list[int]:
    """`length` indices of rows for a whole run, in which `TOGETHER` traces of about equal length follow one another.

    Passes over all rows, as `order` has them. In each, the traces are shuffled and cut into pools of `POOL`; a pool is sorted
    by length and cut into pieces, and all pieces are shuffled. What fills no piece moves into the next pass.
    """
    rng = random.Random(f"sft-order-by-length:{seed}")
    indices: list[int] = []
    rest: list[int] = []
    while len(indices) < length:
        traces = [*rest, *rng.sample(range(len(rows)), len(rows))]
        full = len(traces) - len(traces) % TOGETHER
        traces, rest = traces[:full], traces[full:]
        pieces = []
        for start in range(0, full, POOL):
            pool = sorted(traces[start : start + POOL], key=lambda index: rows[index].tokens)
            pieces += [pool[at : at + TOGETHER] for at in range(0, len(pool), TOGETHER)]
        rng.shuffle(pieces)
        indices += [index for piece in pieces for index in piece]
    return indices[:length]


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def to_dataset(rows: Sequence[Row], columns: Mapping[str, Sequence[str]] | None = None) -> Dataset:
    """Rows in chat form; images are decoded when a row is read.

    Args:
        columns: further ones, by name.
    """
    table = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": r.prompt}] for r in rows],
            "completion": [[{"role": "assistant", "content": r.completion}] for r in rows],
            "images": [list(r.images) for r in rows],
            **{name: list(values) for name, values in (columns or {}).items()},
        }
    )
    return table.with_transform(with_images)
