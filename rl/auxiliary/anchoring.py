"""Anchoring in RL: the attention of `<|focus|>` stays on, or is pulled into, the annotated boxes (`fgrpo.training.anchoring`).

    loss = policy loss + w · L        L: mean over the micro-batch's rollouts; 0 for those whose question has no boxes

- `rl.auxiliary.anchoring.weight` is w, fixed; 1e-3 is the order of magnitude that published attention losses have beside a policy loss.
- With `at_most` = ε the loss is a constraint, L ≤ ε, with a multiplier of its own that begins at `weight`: after each update,
      w ← clip(w + lr (L̄ - ε), 0, most)      L̄: mean over the update's rollouts with boxes, of all processes
  It is the dual step of Eq. 4 on a loss. It is saved with the multipliers of the rewards (`rl.multiplier_checkpoints`).

It cannot be a column of the advantages, as constraints on rewards are: the row of `<|focus|>` depends on the prompt alone, so all
rollouts of a group have the same value, and its group-normalised advantage is 0 (`rl.configured` says so).

The policy must have the token: rl.start=anchor, or a model that descends from `make anchor`. All of this is ours (docs/mr1.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.images import IMAGE_ERRORS
from fgrpo.policy import attention_tap, model_files
from fgrpo.schema_anchor import AnchorLoss
from fgrpo.training.anchoring import Anchoring, Shares, shares_of
from fgrpo.training.row_images import RowImages
from fgrpo.types import Sample
from rl.auxiliary_loss import ROW, AuxiliaryLoss, AuxiliaryLosses, Figures, Mean


@dataclass
class AnchoringLoss(AuxiliaryLoss):
    """The loss and its multiplier.

    Attributes:
        weight: w of the module's docstring; moves if `at_most` is set.
        loss, layers, cells, floor: as in `fgrpo.schema_anchor.AnchorLoss`.
        at_most: ε; None: the weight is fixed.
        lr, most: of the multiplier's step.

    Raises:
        ValueError: a value out of its bounds.
    """

    weight: float
    loss: str = "kl"
    layers: Any = "two_thirds"
    cells: str = "overlap"
    floor: float = 0.1
    at_most: float | None = None
    lr: float = 0.05
    most: float = 5.0
    name: str = "anchoring"
    _anchoring: Anchoring | None = field(default=None, init=False, repr=False)
    _sum: float = field(default=0.0, init=False)  # of L over rollouts with boxes, of the update at hand
    _count: int = field(default=0, init=False)
    _update: int | None = field(default=None, init=False)  # the optimizer step of that update
    _shares: dict[str, Shares] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self.options = AnchorLoss(loss=self.loss, layers=self.layers, cells=self.cells, floor=self.floor)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{first['loc'][0]}: {first['msg']} (got {first.get('input')!r})") from None
        if not (math.isfinite(self.weight) and self.weight >= 0) or (self.at_most is None and self.weight == 0):
            raise ValueError(f"weight must be above 0 (0 only with at_most), got {self.weight}")
        if self.at_most is not None and not (
            math.isfinite(self.at_most) and self.lr > 0 and self.weight <= self.most and math.isfinite(self.most)
        ):
            raise ValueError(
                f"a constraint needs a finite at_most, lr above 0 and weight at most `most`; got at_most={self.at_most}, lr={self.lr}, "
                f"weight={self.weight}, most={self.most}"
            )

    def check(self, trainer: AuxiliaryLosses) -> None:
        """Raises UserError: the policy lacks the token, its attention cannot be read, or no question has boxes."""
        self._of(trainer)
        dataset: Any = trainer.train_dataset
        column = dataset.with_format(None)["sample"] if "sample" in dataset.column_names else []
        if not any(self._shares_of(text, trainer) for text in dict.fromkeys(column)):
            raise UserError(
                "rl.auxiliary.anchoring: no question has annotated boxes, so there is nothing to anchor to; add a source with boxes "
                "to data.sources, or leave the loss out"
            )

    def during(self, trainer: AuxiliaryLosses) -> AbstractContextManager[Any]:
        """The attention tap is open while the trainer trains."""
        return self._of(trainer).tap

    def __call__(
        self, trainer: AuxiliaryLosses, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[Tensor | None, Figures]:
        """L of a micro-batch, in one pass over its prompts."""
        rows, is_sampled = range(len(inputs["prompt_ids"])), ROW in inputs  # a batch of the preflight has no samples
        images = RowImages(inputs, self._of(trainer).family.grid_field)
        if is_sampled:
            keys = [trainer.samples[row] for row in inputs[ROW].tolist()]
            shares_B = [self._shares_of(text, trainer) for text in keys]
        else:
            keys, shares_B = _tried(trainer, rows, images)
        anchored = self._of(trainer)(model, inputs["prompt_ids"], inputs["prompt_mask"], images, shares_B, keys)
        mean, share = float(anchored.loss.detach()), anchored.count / len(rows)
        policy: Any = trainer.model
        if policy.training and is_sampled:
            self._step(trainer, mean * anchored.count, anchored.count)
        figures: dict[str, float | Mean] = {"with_boxes": share}
        if anchored.inside is not None:  # of rollouts with boxes
            of_boxes = {"inside": anchored.inside, "mean": mean}
            figures |= {key: Mean(value * anchored.count, anchored.count) for key, value in of_boxes.items()}
        return anchored.loss * share, figures

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, and the update whose step it still has to take."""
        return {"weight": self.weight, "sum": self._sum, "count": self._count, "update": self._update}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state; a fixed weight is the configuration's.

        Raises:
            ValueError: it is malformed, or out of bounds.
        """
        try:
            weight, total, count, update = (saved[key] for key in ("weight", "sum", "count", "update"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a saved state of the anchoring loss: {error!r}") from error
        if self.at_most is not None:
            if not 0 <= weight <= self.most:
                raise ValueError(f"the saved multiplier of the anchoring loss is {weight!r}, outside [0, {self.most}]")
            self.weight, self._sum, self._count, self._update = weight, total, count, update

    def _step(self, trainer: AuxiliaryLosses, total: float, count: int) -> None:
        """Count a micro-batch; the first one of an update takes the multiplier's step for the update before."""
        if self.at_most is None:
            return
        own = torch.tensor([[total, count]], dtype=torch.float64, device=trainer.accelerator.device)
        total, count = trainer.accelerator.gather(own).sum(dim=0).tolist()
        if self._update != trainer.state.global_step:
            if self._count:
                moved = self.weight + self.lr * (self._sum / self._count - self.at_most)
                self.weight = min(max(moved, 0.0), self.most)
            self._sum, self._count, self._update = 0.0, 0, int(trainer.state.global_step)
        self._sum, self._count = self._sum + total, self._count + int(count)

    def _of(self, trainer: AuxiliaryLosses) -> Anchoring:
        if self._anchoring is None or self._anchoring.model is not trainer.plain_model:
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            attention_tap.refuse_compiled(trainer.args)
            self._anchoring = Anchoring(trainer.plain_model, tokenizer, self.options)
        return self._anchoring

    def _shares_of(self, text: str, trainer: AuxiliaryLosses) -> Shares:
        """The cell shares of a sample in JSON; [] for none, or where its boxes are in no image."""
        if not text:
            return []
        if text not in self._shares:
            sample = Sample.from_dict(json.loads(text))
            pixels = model_files.pixel_bounds(trainer.plain_model.name_or_path)
            try:
                self._shares[text] = shares_of(sample, pixels)
            except IMAGE_ERRORS:
                self._shares[text] = []
        return self._shares[text]


def _tried(trainer: AuxiliaryLosses, rows: Sequence[int], images: RowImages) -> tuple[list[str], list[Shares]]:
    """Keys and shares for a batch whose questions are not known: as many prompts as a micro-batch may have, boxes everywhere."""
    group = int(trainer.num_generations_eval or trainer.num_generations or 1) if trainer.keeps_groups else 1
    family: Any = trainer.known_family()
    per_cell = family.patches_per_token(family.vision_tower(trainer.plain_model))
    grids_B = [[] if images.counts is None else images.grids[row].prod(dim=-1).tolist() for row in rows]
    return [str(row // group) for row in rows], [[[1.0] * (patches // per_cell) for patches in of] for of in grids_B]


AUXILIARY = AnchoringLoss
