"""First phase of the mini backbone: trains the vision tower to encode the content of each image token, then freezes it.

A linear head on each image token predicts colour, shape, row and column, and regresses size and offset of the thing in it; the
head is then discarded. Finally the features are centred and scaled to a fixed spread by folding both into the merger's last
linear layer, so that they have the scale of the language model's embeddings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from miniworld import fast
from miniworld.backbone_model import HIDDEN
from miniworld.render import render
from miniworld.scene import BOARD, CELL, COLORS, SHAPES, SIZES, Scene, sample_scene

CLASSES = (len(COLORS) + 1, len(SHAPES) + 1, BOARD, BOARD)  # 0 = empty
MEASURES = 3  # size, offset right, offset down
FEATURE_SPREAD = 0.3


def targets(scenes: Sequence[Scene]) -> torch.Tensor:
    """Content of each image token: (M, K, 7) = colour, shape, row, column, size, offset right, offset down."""
    out = torch.zeros(len(scenes), BOARD, BOARD, 7)
    out[..., 2] = torch.arange(BOARD).view(-1, 1)
    out[..., 3] = torch.arange(BOARD)
    colors, middle = list(COLORS), (SIZES[0] + SIZES[-1]) / 2
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            (row, column), (x, y) = thing.cell, thing.center
            out[i, row, column, 0] = 1 + colors.index(thing.color)
            out[i, row, column, 1] = 1 + SHAPES.index(thing.shape)
            out[i, row, column, 4] = (thing.size - middle) / 8
            out[i, row, column, 5] = (x - CELL * column) / (CELL / 2) - 1
            out[i, row, column, 6] = (y - CELL * row) / (CELL / 2) - 1
    return out.reshape(len(scenes), -1, 7)


class Head(nn.Module):
    """The linear head and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, sum(CLASSES) + MEASURES)

    def losses(self, features_MKH: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
        """Losses (5,): colour, shape, row, column, measures (only where there is a thing)."""
        *logits, measures = self.linear(features_MKH).split([*CLASSES, MEASURES], -1)
        truth = targets(scenes)
        class_losses = [F.cross_entropy(z.flatten(0, 1), truth[..., i].long().flatten()) for i, z in enumerate(logits)]
        is_occupied = truth[..., 0] > 0
        return torch.stack([*class_losses, 2 * F.mse_loss(measures[is_occupied], truth[..., 4:][is_occupied])])


def step_loss(model: Any, head: Head, rng: random.Random, image_count: int) -> torch.Tensor:
    """Losses (5,) on newly drawn images."""
    scenes = [sample_scene(rng) for _ in range(image_count)]
    pixels = fast.pixel_values([render(scene, rng) for scene in scenes])
    return head.losses(fast.image_features(model.model.visual, pixels), scenes)


@torch.no_grad()
def normalise(model: Any, rng: random.Random, image_count: int = 256) -> None:
    """Centre the features and scale them to FEATURE_SPREAD, by changing the merger's last layer."""
    visual = model.model.visual
    features = fast.features_of(visual, [render(sample_scene(rng), rng) for _ in range(image_count)]).flatten(0, 1)
    mean = features.mean(0)
    scale = FEATURE_SPREAD / (features - mean).std()
    last = visual.merger.mlp[-1]
    last.bias.copy_((last.bias - mean) * scale)
    last.weight.mul_(scale)
