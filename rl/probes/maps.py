"""Maps over the image of one answer: where its tokens and `<|focus|>` attend, and how far it depends on each part (docs/probes.md).

Both are for looking at: nothing is trained on them. They use the passes of the probes, on a batch of one answer.

- Attention: of each response token, at the position that predicts it, renormalised over the image tokens of the prompt; then the
  mean over tokens, heads and layers. Of `<|focus|>`, where the policy has it: its own row, in the same way.
- Drops: the mean δ over the response's tokens (`rewards.probes`) where one block of cells is blanked. A block is one cell, or a
  square of as few cells as make at most `MOST` blocks, hence passes, an image.

Shapes: one array for each image of the question, (R, C) of its cells, or of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgrpo.policy import focus
from fgrpo.policy.attention_layers import Layers, chosen_layers
from fgrpo.policy.attention_tap import AttentionTap
from fgrpo.policy.cells import Cells
from rewards.probes import LARGEST_DROP
from rl.probes.attention import padded_pass, rows_of
from rl.probes.base import Batch
from rl.probes.passes import Passes

MOST = 64  # blocks of one image, each of which takes a pass of the answer
Grids = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention over the cells of an answer's images; a map sums to 1 over all of them.

    Attributes:
        layers: numbers of the layers that were read.
        response: of the answer's tokens.
        on_image: the mean share of their attention that lies on the images at all.
        focus: of `<|focus|>`; None where the prompt has no such token.
    """

    layers: tuple[int, ...]
    response: Grids
    on_image: float
    focus: Grids | None


@dataclass(frozen=True)
class DropMaps:
    """Mean drop of an answer's log-probabilities, in nats per token, by blanked block of `side` x `side` cells."""

    side: int
    drops: Grids


def attention_maps(batch: Batch, passes: Passes, layers: Layers) -> AttentionMaps:
    """The attention maps of the first answer of `batch`, whose question has an image.

    Raises:
        UserError: the policy's attention or `layers` cannot be read (`AttentionTap`).
        ValueError: the attention is not finite.
    """
    model = passes.trainer.plain_model
    numbers = chosen_layers(model.config.get_text_config(), layers)
    rows = rows_of(batch, passes, 0, None)
    token = _focus_column(batch, passes)
    asked = rows if token is None else replace(rows, queries=torch.cat([token, rows.queries]))
    with AttentionTap(model, numbers) as tap, passes.measuring(), tap.read([asked], keep_image=True) as reading:
        padded_pass(passes, batch, [0])
    read = [sums[0] for sums in reading.passes[0].values()]
    shares_QI = torch.stack([_over_image(sums.image_HQI) for sums in read]).mean(dim=0)
    on_image_Q = torch.stack([sums.image_share.mean(dim=0) for sums in read]).mean(dim=0)
    if not bool(torch.isfinite(shares_QI).all() and torch.isfinite(on_image_Q).all()):
        raise ValueError("the attention on the image is not finite")
    shapes, first = passes.shapes(0), 0 if token is None else 1
    of_focus = None if token is None else _grids(shares_QI[0], shapes)
    response = _grids(shares_QI[first:].mean(dim=0), shapes)
    return AttentionMaps(tuple(numbers), response, float(on_image_Q[first:].mean()), of_focus)


def drop_maps(batch: Batch, passes: Passes, most: int = MOST) -> DropMaps:
    """The counterfactual maps of an answer.

    Args:
        batch: of the answer, repeated as often as changed images are to pass together.
        most: blocks of one image.

    Raises:
        ValueError: log-probabilities are not finite.
    """
    shapes, together = passes.shapes(0), len(batch.ids_BL)
    side = block_side(shapes, most)
    length = batch.lengths()[0]
    original_T = passes.original([0])[0, :length]
    changes = [change for image in range(len(shapes)) for change in _blocks(shapes, image, side)]
    found: list[Tensor] = []
    for start in range(0, len(changes), together):
        part = changes[start : start + together]
        changed_BT = passes.changed(dict(enumerate(part)))[: len(part), :length]
        found.append((original_T - changed_BT).clamp(-LARGEST_DROP, LARGEST_DROP).mean(dim=1))
    drops = torch.cat(found)
    if not bool(torch.isfinite(drops).all()):
        raise ValueError("log-probabilities are not finite")
    return DropMaps(side, _grids(drops, [(-(-rows // side), -(-columns // side)) for rows, columns in shapes]))


def block_side(shapes: Sequence[tuple[int, int]], most: int) -> int:
    """The smallest side, in cells, of square blocks of which no image of these shapes (R, C) has more than `most`."""
    side = 1
    while any(-(-rows // side) * -(-columns // side) > most for rows, columns in shapes):
        side += 1
    return side


def _blocks(shapes: Sequence[tuple[int, int]], image: int, side: int) -> list[Cells]:
    """The cells of each block of one image, row by row; those of the other images stay."""
    rows, columns = shapes[image]
    found = []
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            cells = tuple(np.zeros(shape, dtype=bool) for shape in shapes)
            cells[image][top : top + side, left : left + side] = True
            found.append(cells)
    return found


def _focus_column(batch: Batch, passes: Passes) -> Tensor | None:
    """The column (1,) of the first answer's `<|focus|>`; None without one."""
    index = focus.focus_id(passes.tokenizer)
    if index is None:
        return None
    prompt = slice(batch.ids_BL.shape[1] - batch.completion)
    found = ((batch.ids_BL[0, prompt] == index) & (batch.mask_BL[0, prompt] == 1)).nonzero()[:, 0]
    return found[-1:] if len(found) else None


def _over_image(image_HQI: Tensor | None) -> Tensor:
    """(Q, I) attention over the image tokens, mean over heads."""
    assert image_HQI is not None  # `keep_image`
    return image_HQI.exp().mean(dim=0)


def _grids(values: Tensor, shapes: Sequence[tuple[int, int]]) -> Grids:
    """Numbers (cells of all images, row by row) as one array for each image."""
    parts = values.double().cpu().split([rows * columns for rows, columns in shapes])
    return tuple(part.reshape(shape).numpy() for part, shape in zip(parts, shapes, strict=True))
