"""Teacher-forced passes of a generation batch for its probes: the same tokens, on the image or on a changed one. No gradient.

A pass takes only the rows that need it. With several processes each passes as many rows as the one that has the most, since under
DDP and ZeRO-3 they wait for one another; the added rows are not read. Dropout is off, so every difference comes from the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fgrpo.policy import blanked_pixels
from fgrpo.policy.cells import Cells
from fgrpo.training import packed_inputs
from fgrpo.training.row_images import image_fields
from rl.length_bucketing import BY_TOKEN
from rl.passes import LogprobPasses
from rl.probes.base import Batch


class Passes:
    """The passes of one batch."""

    def __init__(self, trainer: LogprobPasses, batch: Batch) -> None:
        self.trainer, self.batch, self.tokenizer = trainer, batch, trainer._tokenizer
        family = trainer.known_family()
        assert family is not None  # or a probe's `check` has refused
        self.family = family
        self.per_cell = self.family.patches_per_token(self.family.vision_tower(trainer.plain_model))
        probing = batch.rollouts.context.probing
        self._fill = probing.fill
        processor: Any = trainer.processing_class
        self._black = blanked_pixels.black(processor.image_processor) if self._fill == "black" else None
        shape = (len(batch.ids_BL), batch.completion)
        self._original_BT = torch.full(shape, torch.nan, device=batch.ids_BL.device)
        self._known: set[int] = set()
        if batch.original_BT is not None and not packed_inputs.has_dropout(trainer.plain_model):
            self._original_BT, self._known = batch.original_BT.float(), set(range(shape[0]))

    def images(self, row: int) -> int:
        """How many images a rollout has."""
        counts = self.batch.fields.get("num_images")
        return 0 if counts is None else int(counts[row])

    def shapes(self, row: int) -> list[tuple[int, int]]:
        """(R, C) of the cells of each image of a rollout."""
        counts = self.batch.fields["num_images"]
        first, side = sum(counts[:row]), round(self.per_cell**0.5)
        grids = self.batch.fields[self.family.grid_field][first : first + counts[row]]
        return [(int(rows) // side, int(columns) // side) for _, rows, columns in grids.tolist()]

    def original(self, rows: Sequence[int]) -> Tensor:
        """Log-probabilities (B, T) under the policy; rows that nobody has asked for may be NaN."""
        missing = [row for row in rows if row not in self._known]
        passed = self._pass(missing, {})
        if missing:
            self._original_BT[missing] = passed
            self._known |= set(missing)
        return self._original_BT

    def changed(self, cells: Mapping[int, Cells]) -> Tensor:
        """Log-probabilities (B, T) with cells of some rollouts' images blanked; NaN in the other rows.

        Args:
            cells: by row, an array for each of its images.

        Raises:
            ValueError: cells that do not fit the row's images.
        """
        out_BT = torch.full_like(self._original_BT, torch.nan)
        rows = sorted(cells)
        passed = self._pass(rows, cells)
        if rows:
            out_BT[rows] = passed
        return out_BT

    def chunk(self, rows: Sequence[int], cells: Mapping[int, Cells] | None = None) -> dict[str, Any]:
        """Arguments of a log-prob pass over `rows` of the batch, with the images of those in `cells` changed."""
        given = self.batch.fields
        out: dict[str, Any] = {
            key: field[list(rows)] for key, field in given.items() if key in BY_TOKEN and field is not None
        }
        counts = given.get("num_images")
        if counts is not None and any(counts[row] for row in rows):
            out |= image_fields(given, rows, counts, self.family.grid_field)
            out["pixel_values"] = self._blanked(out, rows, cells or {})
        return out

    def _blanked(self, fields: Mapping[str, Any], rows: Sequence[int], cells: Mapping[int, Cells]) -> Tensor:
        per_image: list[Any] = []
        for row in rows:
            of_row = cells.get(row) or (None,) * self.images(row)
            if len(of_row) != self.images(row):
                raise ValueError(f"cells of {len(of_row)} images for rollout {row}, which has {self.images(row)}")
            per_image += of_row
        pixels: Tensor = fields["pixel_values"]
        if not cells:
            return pixels
        return blanked_pixels.blanked(
            pixels, fields[self.family.grid_field], self.per_cell, per_image, self._fill, self._black
        )

    def agreed(self, rows: Sequence[int]) -> list[int]:
        """`rows`, filled up with the first row of the batch to as many as any process has."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return list(rows)
        count = torch.tensor([len(rows)], device=accelerator.device)
        return [*rows, *[0] * (int(accelerator.gather(count).max()) - len(rows))]

    def _pass(self, rows: Sequence[int], cells: Mapping[int, Cells]) -> Tensor:
        """Log-probabilities (len(rows), T)."""
        every = self.agreed(rows)
        if not every:
            return self._original_BT[:0]
        batch = self.batch
        with self.measuring():
            logps, *_ = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model,
                batch.ids_BL[every],
                batch.mask_BL[every],
                batch.completion,
                batch_size=batch.most,
                **self.chunk(every, cells),
            )
        passed_BT: Tensor = logps[: len(rows)].float()
        return passed_BT

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the policy is in evaluation mode and keeps no gradient."""
        model: Any = self.trainer.model
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.train(training)
