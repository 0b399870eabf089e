"""Downscales images that do not fit the context together with the question and the reply, and counts them (Appendix B.1).

The paper keeps the resolution of images in a context of 32768 tokens with 4096 for the reply. One image of Qwen2.5-VL takes at most
16384 tokens, so only several very large ones do not fit. Then all images of that question shrink by one factor, as little as
needed; generation, boxes and judges use the smaller files, and annotated boxes are those of the smaller files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.models import ModelSpec, template, user_text
from fgrpo.boxes import PixelBounds, Size, convert, model_size
from fgrpo.errors import UserError
from fgrpo.files import part_of_process, remove_dead_parts
from fgrpo.images import IMAGE_ERRORS, image_size, is_photograph, open_rgb
from fgrpo.policy.backbone import Backbone
from fgrpo.schema import Config
from fgrpo.types import Box, Sample, box_image

FRAME = 64  # tokens of the chat template around a question
STEP = 0.97  # factor per further attempt, where rounding to whole tokens leaves too many
ATTEMPTS = 60
JPEG_QUALITY = 95


def fit(
    samples: Sequence[Sample], spec: ModelSpec, config: Config, bounds: PixelBounds, family: Backbone
) -> list[Sample]:
    """`samples`, with smaller images where they do not fit `eval.context_length`; `meta["shrunk"]` then holds the factor.

    Args:
        bounds: least and most pixels of an image, and pixels per token side, as the model's processor resizes it.
        family: the model's (`fgrpo.policy.model_files.assumed_family`).
    """
    texts = {has: template(spec, config, has_choices=has) for has in (True, False)}
    room = config.eval.context_length - (spec.max_new_tokens or config.eval.max_new_tokens) - FRAME
    cache = Path(config.data.root) / "cache" / "smaller"
    remove_dead_parts(cache)
    return [
        _fit(s, room - _tokens_of(user_text(s, spec, texts[bool(s.choices)])), bounds, family, cache) for s in samples
    ]


def _tokens_of(text: str) -> int:
    """An upper bound on the tokens of a question's text: English has about four characters per token."""
    return math.ceil(len(text) / 2)


def _fit(sample: Sample, room: int, bounds: PixelBounds, family: Backbone, cache: Path) -> Sample:
    try:
        needed = sum(family.prompt_tokens(path, bounds) for path in sample.images)
    except IMAGE_ERRORS:  # a broken image: the engine refuses it and names it
        return sample
    if needed <= room or room <= 0:
        return sample
    share = math.sqrt(room / needed)
    for _ in range(ATTEMPTS):
        try:
            paths = tuple(_smaller(path, share, bounds, cache) for path in sample.images)
        except UserError:  # truncated: the engine refuses it and names it
            return sample
        if sum(family.prompt_tokens(path, bounds) for path in paths) <= room:
            return _moved(sample, paths, {**sample.meta, "shrunk": round(share, 4)})
        share *= STEP
    return sample  # the processor's smallest size is still too much: the engine refuses it and says so


def _moved(sample: Sample, paths: tuple[str, ...], meta: Mapping[str, Any]) -> Sample:
    """`sample` with the smaller images `paths`, and its boxes in their pixels."""
    sizes = [(image_size(old), image_size(new)) for old, new in zip(sample.images, paths, strict=True)]
    boxes = (
        None
        if sample.boxes is None
        else tuple(_scaled(box, *sizes[box_image(sample, place)]) for place, box in enumerate(sample.boxes))
    )
    return replace(sample, images=paths, boxes=boxes, meta=meta)


def _scaled(box: Box, old: Size, new: Size) -> Box:
    """A box in pixels of its file, in those of a smaller file; one in another frame stays."""
    return replace(convert(box, "model", old, new), frame="original") if box.frame == "original" else box


def _smaller(path: str, share: float, bounds: PixelBounds, cache: Path) -> str:
    """A copy of an image whose sides are `share` times those that the model would see; of a photograph a JPEG, else a PNG."""
    stat = Path(path).stat()
    name = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns} {share} {tuple(bounds)}".encode()).hexdigest()[:24]
    photograph = is_photograph(path)
    smaller = cache / f"{name}.{'jpg' if photograph else 'png'}"
    if not smaller.exists():
        image = open_rgb(path)
        width, height = model_size(image.size, *bounds)
        size = (max(bounds.factor, round(width * share)), max(bounds.factor, round(height * share)))
        cache.mkdir(parents=True, exist_ok=True)
        part = part_of_process(smaller)  # models are evaluated in parallel
        resized = image.resize(size)
        if photograph:
            resized.save(part, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            resized.save(part, "PNG")
        part.replace(smaller)
    return str(smaller)
