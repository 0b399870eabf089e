"""The `anchor` section of a configuration: the loss on the attention of `<|focus|>`, and the stage that trains it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fgrpo.schema_base import Count, Rate, Section


class AnchorLoss(Section):
    """What the anchoring loss is (`fgrpo.training.anchoring`).

    `loss`: "kl" also asks for the shape of the target, "mass" for attention inside the boxes alone. `layers`: whose attention, one
    (floor(2L/3) of L), the last third, all, or numbers. `cells`: a cell's weight in the target is the share of it that the boxes
    cover, or 1 where they touch it. `floor`: the part of the target that is uniform over the image.
    """

    loss: Literal["kl", "mass"] = "kl"
    layers: Literal["two_thirds", "last_third", "all"] | Annotated[tuple[Count, ...], Field(min_length=1)] = (
        "two_thirds"
    )
    cells: Literal["overlap", "touched"] = "overlap"
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


class Anchor(AnchorLoss):
    """The stage `make anchor`: SFT from the SFT checkpoint with `weight` times the anchoring loss; other keys are those of `sft`.

    `add_row`: whether a model whose embedding has no unused row gets one for the token.
    """

    weight: Rate
    epochs: Rate
    max_steps: int
    learning_rate: Rate
    add_row: bool
