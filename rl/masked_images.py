"""Images of a batch with random patches painted black: the counterfactual view of PAPO and VPPO. One indexed write, no new prompt.

A row of `pixel_values` is one patch of the vision tower (14 pixels a side in Qwen2.5-VL), channels first. Which patches are black
depends on the image, the run's seed and the optimizer step alone. So all rollouts of a prompt see the same view, on all
processes, they can share its row, and a resumed run sees what an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.policy.blanked_pixels import NOT_NORMALISED
from rl import mixed_batches
from rl.passes import LogprobPasses


def check(trainer: LogprobPasses, what: str) -> None:
    """Check that the training images can be changed.

    Args:
        what: the configuration key or loss that needs them, for the message.

    Raises:
        UserError: rows without images, an unknown model family, or a processor that does not normalise.
    """
    if trainer.known_family() is None:
        kind = getattr(trainer.plain_model.config, "model_type", None)
        raise UserError(f"{what} changes images, and the layout of {kind}'s is not known (fgrpo/policy/backbones)")
    _black(trainer, 0, what)
    dataset = trainer.train_dataset
    columns = set(getattr(dataset, "column_names", None) or ())
    if not columns & {"images", "image"} or mixed_batches.is_mixed(dataset):
        raise UserError(
            f"{what} compares the policy with and without parts of the image, and the training data have rows without an image; "
            "leave those rows out, or the key"
        )


def blanked(
    trainer: LogprobPasses, batch: Mapping[str, Any], share: float, what: str = "a masked image"
) -> dict[str, Any]:
    """TRL's `batch` with each patch of its images black with probability `share`. The batch itself stays as it is.

    Raises:
        UserError: the batch has no images.
    """
    pixels, family = batch.get("pixel_values"), trainer.known_family()
    if pixels is None or family is None:
        raise UserError(f"{what} is wanted at step {trainer.state.global_step + 1}, and its rollouts have no image")
    grids = batch[family.grid_field]
    where = f"{trainer.args.seed}/{trainer.state.global_step}"
    parts = torch.split(pixels, grids.prod(dim=-1).tolist())
    black_Q = torch.cat([_chosen(part, where, share) for part in parts]).to(pixels.device)
    changed = pixels.clone()
    changed[black_Q] = _black(trainer, pixels.shape[1], what).to(pixels)
    return {**batch, "pixel_values": changed}


def _chosen(image: Tensor, where: str, share: float) -> Tensor:
    """Which patches (patches,) of an image are black; at least one stays, and at least one is black."""
    content = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    seed = xxhash.xxh3_64_intdigest(content + where.encode()) >> 1
    drawn = torch.rand(len(image), generator=torch.Generator().manual_seed(seed))
    chosen = drawn < share
    chosen[drawn.argmin()], chosen[drawn.argmax()] = True, False
    return chosen


def _black(trainer: LogprobPasses, width: int, what: str) -> Tensor:
    """A black patch (width,) as the processor writes one: (0 - mean) / deviation of each channel."""
    processor = getattr(trainer.processing_class, "image_processor", None)
    if not getattr(processor, "do_normalize", True):
        raise UserError(f"{what} paints patches black, and {NOT_NORMALISED}")
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or deviation is None:
        raise UserError(f"{what} paints patches black, and the processor names no image_mean and image_std")
    per_channel = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(deviation, dtype=torch.float32)
    return per_channel.repeat_interleave(width // len(per_channel)) if width else per_channel
