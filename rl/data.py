"""The RL questions as TRL expects them, in an order that depends on the seed alone.

`order` is the run's complete sequence of questions. So two methods with one seed see the same prompts, and a run resumes where
it stopped, also after the first pass over the data (TRL's own sampler forgets earlier passes on resume).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from fgrpo import prompts
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS, with_images
from fgrpo.policy import loading
from fgrpo.policy.backbone import Backbone
from fgrpo.policy.tokens import special_token
from fgrpo.types import Sample


def read_samples(path: str | Path, dropped: Counter[str]) -> list[Sample]:
    """The questions of rl.jsonl; rows that are not a sample, or have no image or answer, are dropped and counted by reason.

    Args:
        dropped: receives the counts.

    Raises:
        UserError: no usable row.
    """
    samples = []
    for row in read_jsonl(path):
        try:
            sample = Sample.from_dict(row)
        except (KeyError, TypeError, ValueError) as error:
            dropped[f"not a sample: {type(error).__name__}"] += 1
            continue
        if not sample.images:
            dropped["no image"] += 1
        elif not str(sample.answer).strip():
            dropped["no answer"] += 1
        elif not all(Path(image).is_file() for image in sample.images):
            dropped["image file missing"] += 1
        elif special_token(sample.question):
            dropped["special token written out in the question"] += 1
        else:
            samples.append(sample)
    if not samples:
        raise UserError(f"{path} has no usable question ({dict(dropped)}); fix the sources, then rerun `make data`")
    return samples


def order(count: int, length: int, seed: int) -> list[int]:
    """`length` indices below `count`: shuffled passes, one after the other; a function of its arguments alone."""
    rng = random.Random(f"rl-order:{seed}")
    indices: list[int] = []
    while len(indices) < length:
        once = list(range(count))
        rng.shuffle(once)
        indices += once
    return indices[:length]


def fitting(
    samples: Iterable[Sample],
    template: str,
    processor: Any,
    limit: int,
    pixels: PixelBounds,
    family: Backbone,
    dropped: Counter[str],
) -> list[Sample]:
    """Samples whose prompt (text, image tokens, the chat template's own) has at most `limit` tokens; others are dropped and counted.

    Args:
        limit: rl.max_prompt_length.
        pixels: the processor's bounds.
        family: the policy's.
        dropped: receives the counts.

    Raises:
        UserError: no prompt fits.
    """
    fit, tokenizer = [], processor.tokenizer
    of_template = len(tokenizer(loading.render_prompt(processor, (), ""))["input_ids"])
    for sample in samples:
        try:
            used = len(tokenizer(prompts.user_text(sample, template))["input_ids"]) + sum(
                family.prompt_tokens(path, pixels) for path in sample.images
            )
        except IMAGE_ERRORS:
            dropped["image cannot be read"] += 1
            continue
        if used + of_template > limit:
            dropped["prompt longer than rl.max_prompt_length"] += 1
        else:
            fit.append(sample)
    if not fit:
        raise UserError(f"no prompt fits rl.max_prompt_length = {limit} tokens; raise it")
    return fit


def to_dataset(samples: Sequence[Sample], template: str) -> Dataset:
    """Rows {"prompt", "images", "sample"}: a chat turn, decoded images (loaded when a row is read), the sample as JSON."""
    table = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompts.user_text(s, template)}] for s in samples],
            "images": [list(s.images) for s in samples],
            "sample": [json.dumps(s.to_dict(), ensure_ascii=False) for s in samples],
        }
    )
    return table.with_transform(with_images)
