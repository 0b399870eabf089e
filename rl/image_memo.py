"""Images of one generation batch are resized and normalised once, not once per rollout and pass.

TRL gives its processor the images of every rollout, twice per generation. The rollouts of one prompt hold the same image object
(`fgrpo.images.decoded`), so at a group size of five, nine tenths of this work is repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_utils import make_flat_list_of_images

PIXELS = "pixel_values"
PREPROCESS = "preprocess"


@contextmanager
def prepared_once(processor: Any, grid_field: str) -> Iterator[None]:
    """Within it, `processor` prepares each image object once. The results are the same tensors.

    Args:
        processor: a processor whose image processor gives `pixel_values` (patches of all images, D) and grids (images, 3).
        grid_field: name of the grids.
    """
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        yield
        return
    attributes = vars(image_processor)
    own = {name: attributes[name] for name in (PREPROCESS,) if name in attributes}  # somebody else's replacement
    setattr(image_processor, PREPROCESS, _Memo(image_processor.preprocess, grid_field))
    try:
        yield
    finally:
        del attributes[PREPROCESS]  # the processor is saved with its attributes
        attributes.update(own)


class _Memo:
    """An image processor's `preprocess` that knows its results by image object and options."""

    def __init__(self, prepare: Callable[..., BatchFeature], grid_field: str) -> None:
        self._prepare, self._grid_field = prepare, grid_field
        # by the image's id and the options; the image is held, so that its id stays its own
        self._known: dict[tuple[int, str], tuple[Image.Image, Tensor, Tensor]] = {}

    def __call__(self, images: Any, *args: Any, **options: Any) -> BatchFeature:
        flat: list[Any] = list(make_flat_list_of_images(images))  # type: ignore[arg-type]
        form = options.get("return_tensors")
        if args or not flat or form not in (None, "pt") or not all(isinstance(image, Image.Image) for image in flat):
            return self._prepare(images, *args, **options)
        how = repr(sorted((key, value) for key, value in options.items() if key != "return_tensors"))
        keys = [(id(image), how) for image in flat]
        missing = {key: image for key, image in zip(keys, flat, strict=True) if key not in self._known}
        if missing and not self._learn(missing, options):
            return self._prepare(images, **options)
        fields = {
            PIXELS: torch.cat([self._known[key][1] for key in keys]),
            self._grid_field: torch.stack([self._known[key][2] for key in keys]),
        }
        return BatchFeature(fields, tensor_type=form)

    def _learn(self, images: dict[tuple[int, str], Image.Image], options: dict[str, Any]) -> bool:
        """Prepare `images` in one batch and keep the results; False if they are not of the known form."""
        out = self._prepare(list(images.values()), **{**options, "return_tensors": "pt"})
        pixels, grids = out.get(PIXELS), out.get(self._grid_field)
        if set(out) != {PIXELS, self._grid_field} or not isinstance(pixels, Tensor) or not isinstance(grids, Tensor):
            return False
        parts: Sequence[Tensor] = torch.split(pixels, grids.prod(dim=-1).tolist())
        for (key, image), part, grid in zip(images.items(), parts, grids, strict=True):
            self._known[key] = (image, part, grid)
        return True
