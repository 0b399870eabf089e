"""The RL questions as TRL wants them, in an order that depends on the seed alone.

`order` is the whole run's sequence of questions, so two methods with one seed see the same prompts, and a resumed run goes on
where it stopped, also after the first pass over the data (TRL's own sampler forgets earlier passes on resume).
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
from fgrpo.images import IMAGE_ERRORS, image_tokens, with_images
from fgrpo.policy import loading
from fgrpo.policy.tokens import special_token
from fgrpo.types import Sample


def read_samples(path: str | Path, dropped: Counter[str]) -> list[Sample]:
    """The questions of rl.jsonl; rows that are no sample, or have no picture or answer, are counted under a reason and left out.

    Raises:
        UserError: nothing usable is left.
    """
    samples = []
    for row in read_jsonl(path):
        try:
            sample = Sample.from_dict(row)
        except (KeyError, TypeError, ValueError) as error:
            dropped[f"not a sample: {type(error).__name__}"] += 1
            continue
        if not sample.images:
            dropped["no picture"] += 1
        elif not str(sample.answer).strip():
            dropped["no answer"] += 1
        elif not all(Path(image).is_file() for image in sample.images):
            dropped["picture file missing"] += 1
        elif special_token(sample.question):
            dropped["special token written out in the question"] += 1
        else:
            samples.append(sample)
    if not samples:
        raise UserError(f"{path} has no usable question ({dict(dropped)}); run `make data` again")
    return samples


def order(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` indices below `count`: shuffled passes, one after the other; a function of its arguments alone."""
    rng = random.Random(f"rl-order:{seed}")
    indices: list[int] = []
    while len(indices) < wanted:
        once = list(range(count))
        rng.shuffle(once)
        indices += once
    return indices[:wanted]


def fitting(
    samples: Iterable[Sample], template: str, processor: Any, limit: int, pixels: PixelBounds, dropped: Counter[str]
) -> list[Sample]:
    """Samples whose prompt (text, image tokens, the chat template's own) has at most `limit` tokens; the others are counted.

    Args:
        pixels: the processor's bounds (min_pixels, max_pixels).
    """
    kept, tokenizer = [], processor.tokenizer
    own = len(tokenizer(loading.render_prompt(processor, (), ""))["input_ids"])
    for sample in samples:
        try:
            used = len(tokenizer(prompts.user_text(sample, template))["input_ids"]) + sum(
                image_tokens(p, pixels) for p in sample.images
            )
        except IMAGE_ERRORS:
            dropped["picture cannot be read"] += 1
            continue
        if used + own > limit:
            dropped["prompt longer than rl.max_prompt_length"] += 1
        else:
            kept.append(sample)
    if not kept:
        raise UserError(f"no prompt fits rl.max_prompt_length = {limit} tokens; raise it")
    return kept


def to_dataset(samples: Sequence[Sample], template: str) -> Dataset:
    """Rows {"prompt", "images", "sample"}: a chat turn, decoded pictures (loaded when a row is read), the sample as JSON."""
    table = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompts.user_text(s, template)}] for s in samples],
            "images": [list(s.images) for s in samples],
            "sample": [json.dumps(s.to_dict(), ensure_ascii=False) for s in samples],
        }
    )
    return table.with_transform(with_images)
