"""Pictures that do not fit the context beside the question and the reply are made smaller, and it is said (Appendix B.1).

The paper keeps the resolution of pictures in a context of 32768 tokens with 4096 for the reply. One picture of Qwen2.5-VL takes
at most 16384 tokens, so only several very large ones do not fit; then all pictures of that question shrink by one factor, as
little as is needed, and the smaller files are what generation, boxes and judges see.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.models import ModelSpec, template, user_text
from fgrpo.boxes import PixelBounds, model_size
from fgrpo.images import IMAGE_ERRORS, image_tokens, open_rgb
from fgrpo.schema import Config
from fgrpo.types import Sample

FRAME = 64  # tokens of the chat template around a question
STEP = 0.97  # how much closer an attempt gets, where rounding to whole tokens left a rest
ATTEMPTS = 60


def fit(samples: Sequence[Sample], spec: ModelSpec, config: Config, bounds: PixelBounds) -> list[Sample]:
    """`samples`, those whose pictures do not fit `eval.context_length` with smaller ones (then `meta["shrunk"]` says by what).

    Args:
        bounds: least and most pixels of a picture as the model's processor resizes it.
    """
    texts = {has: template(spec, config, has_choices=has) for has in (True, False)}
    room = config.eval.context_length - (spec.max_new_tokens or config.eval.max_new_tokens) - FRAME
    cache = Path(config.data.root) / "cache" / "smaller"
    return [_fit(s, room - _tokens_of(user_text(s, spec, texts[bool(s.choices)])), bounds, cache) for s in samples]


def _tokens_of(text: str) -> int:
    """At least as many tokens as a text of a question takes: English has about four characters a token."""
    return math.ceil(len(text) / 2)


def _fit(sample: Sample, room: int, bounds: PixelBounds, cache: Path) -> Sample:
    try:
        needed = sum(image_tokens(path, bounds) for path in sample.images)
    except IMAGE_ERRORS:  # a broken picture: the engine refuses it, by name
        return sample
    if needed <= room or room <= 0 or sample.boxes:  # no benchmark annotates boxes; in other pixels they would be wrong
        return sample
    share = math.sqrt(room / needed)
    for _ in range(ATTEMPTS):
        paths = tuple(_smaller(path, share, bounds, cache) for path in sample.images)
        if sum(image_tokens(path, bounds) for path in paths) <= room:
            return replace(sample, images=paths, meta={**sample.meta, "shrunk": round(share, 4)})
        share *= STEP
    return sample  # the least that the processor makes of them is still too much: the engine refuses it in words


def _smaller(path: str, share: float, bounds: PixelBounds, cache: Path) -> str:
    """A copy of a picture at `share` of the sides the model would see."""
    stat = Path(path).stat()
    name = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns} {share} {tuple(bounds)}".encode()).hexdigest()[:24]
    made = cache / f"{name}.png"
    if not made.exists():
        picture = open_rgb(path)
        width, height = model_size(picture.size, *bounds)
        size = (max(bounds.factor, round(width * share)), max(bounds.factor, round(height * share)))
        cache.mkdir(parents=True, exist_ok=True)
        aside = made.with_suffix(f".{os.getpid()}.part")  # models are evaluated side by side
        picture.resize(size).save(aside, "PNG")
        aside.replace(made)
    return str(made)
