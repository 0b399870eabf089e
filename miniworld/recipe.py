"""All hyperparameters of the mini backbone's training. They are ours; the paper starts from Qwen2.5-VL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fgrpo.errors import UserError
from miniworld.curriculum import Mix

# Shares of the question families: the core first, then the others with small weights, so that they do not slow down the core.
CORE: Mapping[str, float] = {"hrel": 1 / 3, "vrel": 1 / 3, "depth": 1 / 3}
# `view` and `moved` are shares of the images; all others are shares of the questions.
FAMILIES: Mapping[str, float] = {
    "hrel": 0.26,
    "vrel": 0.26,
    "depth": 0.26,
    "count": 0.05,
    "nearer": 0.03,
    "behind": 0.03,
    "view": 0.06,
    "moved": 0.05,
}
# Text-only reasoning is cheap, so the other families get larger shares.
REASONED: Mapping[str, float] = {
    "hrel": 0.2,
    "vrel": 0.2,
    "depth": 0.2,
    "count": 0.08,
    "nearer": 0.06,
    "behind": 0.1,
    "view": 0.08,
    "moved": 0.08,
}


@dataclass(frozen=True)
class VisionStage:
    """Vision tower with its head: AdamW, warm-up, then cosine decay to a twentieth of the peak."""

    steps: int = 150
    pictures: int = 32
    lr: float = 2e-3
    warmup: int = 30


@dataclass(frozen=True)
class LanguageStage:
    """Language model on precomputed features. `mixes`: (first step, mix)."""

    steps: int
    pictures: int
    turns: int
    lr: float
    mixes: tuple[tuple[int, Mix], ...]
    warmup: int = 40
    align: float = 0.3
    reasoned: Mapping[str, float] = field(default_factory=lambda: REASONED)
    look: int = 0
    derive: int = 6
    derive_weight: float = 0.5
    form: int = 4
    form_weight: float = 0.5
    unrelated_picture: bool = False
    text_from: int = 0  # first step with reasoning; the model learns nothing from it before it can distinguish numbers

    def mix_at(self, step: int) -> Mix:
        return [mix for start, mix in self.mixes if step >= start][-1]


@dataclass(frozen=True)
class Recipe:
    """The complete training."""

    seed: int = 0
    singles: int = 6144
    pairs: int = 768
    vision: VisionStage = VisionStage()
    direct: LanguageStage = LanguageStage(
        steps=600,
        text_from=250,
        form_weight=0.5,
        pictures=32,
        turns=3,
        lr=1.5e-3,
        mixes=(
            (0, Mix(0.35, 0.15, 0.2, 0.3, CORE)),
            (380, Mix(0.08, 0.07, 0.1, 0.75, CORE)),
            (450, Mix(0.06, 0.06, 0.03, 0.85, FAMILIES)),
        ),
    )
    follow: LanguageStage = LanguageStage(
        steps=200,
        pictures=24,
        turns=3,
        lr=1e-3,
        mixes=((0, Mix(0.05, 0.05, 0.0, 0.9, FAMILIES)),),
        look=5,
        derive=10,
        derive_weight=1.0,
        form=12,
        form_weight=3.0,
        unrelated_picture=True,
    )

    def quick(self) -> Recipe:
        """A few steps of every phase, to test the code; the model learns nothing."""
        return replace(
            self,
            singles=64,
            pairs=8,
            vision=replace(self.vision, steps=4),
            direct=replace(self.direct, steps=4, pictures=4),
            follow=replace(self.follow, steps=2, pictures=4, derive=4, form=2),
        )

    def changed(
        self, seed: int | None = None, direct_steps: int | None = None, follow_steps: int | None = None
    ) -> Recipe:
        """With another seed and other lengths of the language phases, whose schedules end there; None keeps the recipe's.

        Raises:
            UserError: a number of steps is negative, or there are no direct steps.
        """
        for name, steps, least in (("direct", direct_steps, 1), ("follow", follow_steps, 0)):
            if steps is not None and steps < least:
                raise UserError(f"{steps} steps of the phase {name!r} are too few; it takes at least {least}")
        return replace(
            self,
            seed=self.seed if seed is None else seed,
            direct=self.direct if direct_steps is None else replace(self.direct, steps=direct_steps),
            follow=self.follow if follow_steps is None else replace(self.follow, steps=follow_steps),
        )


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine decay to a twentieth of `peak`."""
    return peak * min(1.0, (step + 1) / warmup) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
