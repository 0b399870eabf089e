"""For each token of a response, the share of its attention on the image that lies in the annotated boxes (MR1-style).

One pass over padded rows under the tap (`fgrpo.policy.attention_tap`), on the image as it is. The row of token t is that of the
position that predicts it, one before it. Shares are averaged over heads and the layers of `rl.probes.layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl import GRPOTrainer

from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.policy.attention_sums import Rows
from fgrpo.policy.attention_tap import AttentionTap, Reading, refuse_compiled
from fgrpo.policy.cells import Cells
from rewards.base import RewardContext
from rewards.probes import Absent
from rl.passes import LogprobPasses
from rl.probes.base import Batch, Rollouts, values_of
from rl.probes.evidence import evidence
from rl.probes.passes import Passes

FIELDS = ("pixel_values", "num_images", "mm_token_type_ids")  # of TRL's batch, beside the grids
NOT_FINITE = Absent("not_finite", "the attention on the image is not finite", True)


class Attention:
    """The probe of this module."""

    gives = ("attention",)

    def check(self, trainer: LogprobPasses, context: RewardContext) -> None:
        """As `Probe.check`: a known family, and an attention implementation and layers that the tap can read."""
        self._tap(trainer, context)

    def measure(self, needs: frozenset[str], batch: Batch, passes: Passes) -> list[dict[str, Any]]:
        """As `Probe.measure`."""
        context = batch.rollouts.context
        by_sample: dict[str, Cells | Absent] = {}
        for item in batch.rollouts.items:
            if item.sample.id not in by_sample:
                by_sample[item.sample.id] = evidence(item.sample, context)
        regions = [by_sample[item.sample.id] for item in batch.rollouts.items]
        known = {row: region for row, region in enumerate(regions) if not isinstance(region, Absent)}
        shares_BT = self._shares(known, batch, passes, context)
        lengths, found = batch.lengths(), []
        for row, region in enumerate(regions):
            shares: Any = region
            if not isinstance(region, Absent):
                whole = bool(torch.isfinite(shares_BT[row, : lengths[row]]).all())
                shares = values_of(shares_BT, lengths, row) if whole else NOT_FINITE
            found.append({"attention": shares})
        return found

    def try_out(self, trainer: LogprobPasses, made: Mapping[str, Any], context: RewardContext) -> None:
        """The pass of `measure` over TRL's batch, with every cell as evidence; for the preflight, which asks whether it fits."""
        ids_BL, mask_BL = (
            torch.cat([made[f"prompt_{key}"], made[f"completion_{key}"]], dim=1) for key in ("ids", "mask")
        )
        family, most = trainer.known_family(), trainer.args.per_device_train_batch_size
        assert family is not None  # or `check` has refused
        fields = {key: made[key] for key in (*FIELDS, family.grid_field) if made.get(key) is not None}
        batch = Batch(Rollouts((), (), (), context), ids_BL, mask_BL, made["completion_ids"].shape[1], most, fields)
        passes = Passes(trainer, batch)
        every = {
            row: tuple(np.ones(shape, dtype=bool) for shape in passes.shapes(row))
            for row in range(len(ids_BL))
            if passes.images(row)
        }
        self._shares(every, batch, passes, context)

    def _tap(self, trainer: LogprobPasses, context: RewardContext) -> AttentionTap:
        refuse_compiled(trainer.args)
        model = trainer.plain_model
        return AttentionTap(model, chosen_layers(model.config.get_text_config(), context.probing.layers))

    def _shares(self, known: dict[int, Cells], batch: Batch, passes: Passes, context: RewardContext) -> Tensor:
        """(B, T) mean shares; NaN in rows without evidence."""
        trainer, out_BT = (
            passes.trainer,
            torch.full_like(batch.ids_BL[:, -batch.completion :], torch.nan, dtype=torch.float32),
        )
        rows = sorted(known)
        every = passes.agreed(rows)
        if not every:
            return out_BT
        with self._tap(trainer, context) as tap, passes.measuring():
            for start in range(0, len(every), batch.most):
                part = every[start : start + batch.most]
                of_part = [rows_of(batch, passes, row, known.get(row)) for row in part]
                with tap.read(of_part) as reading:
                    padded_pass(passes, batch, part)
                for place, row in enumerate(part):
                    if start + place < len(rows):
                        out_BT[row, : len(of_part[place].queries)] = _mean(reading, place)
        return out_BT


def padded_pass(passes: Passes, batch: Batch, rows: Sequence[int]) -> None:
    """One pass of the policy over `rows` of the batch, padded as TRL pads them, for a tap to read."""
    trainer = passes.trainer
    GRPOTrainer._get_per_token_logps_and_entropies(
        trainer,
        trainer.model,
        batch.ids_BL[rows],
        batch.mask_BL[rows],
        batch.completion,
        len(rows),
        **passes.chunk(rows),
    )


def rows_of(batch: Batch, passes: Passes, row: int, cells: Cells | None) -> Rows:
    """What is read of a rollout: the rows that predict its tokens. Without `cells` all of its image counts as evidence."""
    prompt = batch.ids_BL.shape[1] - batch.completion
    length = int(batch.mask_BL[row, prompt:].sum())
    device = batch.ids_BL.device
    token = passes.family.image_token_id(passes.trainer.plain_model.config)
    is_image = (batch.ids_BL[row, :prompt] == token) & (batch.mask_BL[row, :prompt] == 1)
    image = is_image.nonzero()[:, 0]
    chosen = torch.ones(len(image), dtype=torch.bool) if cells is None else _flat(cells)
    if len(chosen) != len(image):
        raise ValueError(f"{len(chosen)} cells for the {len(image)} image tokens of rollout {row}")
    return Rows(torch.arange(prompt - 1, prompt - 1 + length, device=device), image, image[chosen.to(device)])


def _flat(cells: Cells) -> Tensor:
    """The cells of all images, row by row, as image tokens follow one another."""
    return torch.cat([torch.from_numpy(part).flatten() for part in cells])


def _mean(reading: Reading, place: int) -> Tensor:
    """(Q,) evidence share of one row of the pass, over heads and layers."""
    shares = [sums[place].evidence_share.mean(dim=0) for sums in reading.passes[0].values()]
    return torch.stack(shares).mean(dim=0)


PROBE = Attention()
