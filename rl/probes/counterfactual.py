"""Counterfactual images: how far each token's log-probability drops where a part of the image is blanked (MR1-style).

The same token ids and grid; cells of the image are overwritten in `pixel_values` (`fgrpo.policy.blanked_pixels`). Changes:
- evidence: the cells that the annotated boxes touch;
- controls: as many cells of the same shape elsewhere, `rl.probes.controls` times;
- patches: each cell with probability `rl.probes.patch_share`.
Regions depend on the question alone. So the rollouts of a group see the same image, share a row of the pass, and can be compared.
One pass for each change, and one on the image itself where TRL's old log-probabilities do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.policy import cells
from fgrpo.policy.blanked_pixels import NOT_NORMALISED
from fgrpo.policy.cells import Cells
from fgrpo.types import Sample
from rewards.base import RewardContext
from rewards.probes import LARGEST_DROP, Absent
from rl.passes import LogprobPasses
from rl.probes.base import Batch, Probe, values_of
from rl.probes.evidence import evidence
from rl.probes.passes import Passes

NO_CONTROL = Absent("no_control", "no other region of this shape fits beside the annotated one")
NO_IMAGE = Absent("no_image", "the question has no image")
NOT_FINITE = Absent("not_finite", "log-probabilities under the changed image are not finite", True)


class Counterfactual:
    """The probe of this module."""

    gives = ("evidence", "controls", "patches")

    def check(self, trainer: LogprobPasses, context: RewardContext) -> None:
        """As `Probe.check`: the policy's family must be known, and 0 must be the mean colour where cells are filled with it."""
        if trainer.known_family() is None:
            kind = getattr(trainer.plain_model.config, "model_type", None)
            raise UserError(
                f"a counterfactual image needs a model family of fgrpo/policy/backbones, and the policy is of type {kind!r}; leave "
                "out the rewards that need it"
            )
        processor = getattr(trainer.processing_class, "image_processor", None)
        if context.probing.fill != "black" and not getattr(processor, "do_normalize", True):
            raise UserError(
                f"rl.probes.fill: {context.probing.fill} fills with the mean colour, and {NOT_NORMALISED}; use black"
            )

    def measure(self, needs: frozenset[str], batch: Batch, passes: Passes) -> list[dict[str, Any]]:
        """As `Probe.measure`."""
        context, items = batch.rollouts.context, batch.rollouts.items
        found: list[dict[str, Any]] = [{} for _ in items]
        if needs & {"evidence", "controls"}:
            regions: dict[str, Regions] = {}
            for item in items:
                if item.sample.id not in regions:
                    regions[item.sample.id] = Regions(item.sample, context)
            of_row = [regions[item.sample.id] for item in items]
            if "evidence" in needs:
                known = {row: r.evidence for row, r in enumerate(of_row) if not isinstance(r.evidence, Absent)}
                for row, drops in enumerate(self._drops(known, batch, passes)):
                    absent = of_row[row].evidence
                    found[row]["evidence"] = absent if isinstance(absent, Absent) else drops
            if "controls" in needs:
                self._controls(of_row, found, batch, passes)
        if "patches" in needs:
            share = context.probing.patch_share
            random = {
                row: cells.random_cells(passes.shapes(row), share, item.sample.id)
                for row, item in enumerate(items)
                if passes.images(row)
            }
            for row, drops in enumerate(self._drops(random, batch, passes)):
                found[row]["patches"] = drops if row in random else NO_IMAGE
        return found

    def _controls(self, of_row: list[Regions], found: list[dict[str, Any]], batch: Batch, passes: Passes) -> None:
        several: list[list[Any]] = [[] for _ in of_row]
        for number in range(batch.rollouts.context.probing.controls):
            known = {row: r.controls[number] for row, r in enumerate(of_row) if len(r.controls) > number}
            for row, drops in enumerate(self._drops(known, batch, passes)):
                if row in known:
                    several[row].append(drops)
        for row, measured in enumerate(several):
            failed = next((one for one in measured if isinstance(one, Absent)), None)
            absent = of_row[row].evidence
            no_region = absent if isinstance(absent, Absent) else NO_CONTROL
            found[row]["controls"] = failed or (tuple(measured) if measured else no_region)

    def _drops(self, changes: Mapping[int, Cells], batch: Batch, passes: Passes) -> list[tuple[float, ...] | Absent]:
        """δ of each token, by rollout; what it gives for rollouts without a change means nothing."""
        original_BT, changed_BT = passes.original(list(changes)), passes.changed(changes)
        drops_BT: Tensor = (original_BT - changed_BT).clamp(-LARGEST_DROP, LARGEST_DROP)
        lengths = batch.lengths()
        drops = [values_of(drops_BT, lengths, row) for row in range(len(lengths))]
        known_BT = torch.isfinite(original_BT) & torch.isfinite(changed_BT)
        finite = [bool(known_BT[row, : lengths[row]].all()) for row in range(len(lengths))]
        return [one if whole else NOT_FINITE for one, whole in zip(drops, finite, strict=True)]


class Regions:
    """The regions of one question: `evidence`, or why there is none, and `controls`, as many as fit."""

    def __init__(self, sample: Sample, context: RewardContext) -> None:
        self.evidence: Cells | Absent = evidence(sample, context)
        self.controls: list[Cells] = (
            []
            if isinstance(self.evidence, Absent)
            else cells.controls(self.evidence, context.probing.controls, sample.id)
        )


PROBE: Probe = Counterfactual()
