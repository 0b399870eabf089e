"""The seam between a trainer and a scorer: what each reads of the other (`rl.scoring` has the project's scorer)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol


class _State(Protocol):
    @property
    def global_step(self) -> int: ...


class _Process(Protocol):
    @property
    def process_index(self) -> int: ...


class ScoredTrainer(Protocol):
    """What a scorer reads of the trainer whose rollouts it scores.

    Attributes:
        state: with the optimizer steps done.
        accelerator: with the rank of this process.
        async_loop: the running event loop on which reward functions are awaited.
        group_size: rollouts per prompt of the present phase.
    """

    @property
    def state(self) -> _State: ...

    @property
    def accelerator(self) -> _Process: ...

    @property
    def async_loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def group_size(self) -> int: ...

    def is_cut_off(self, ids: Sequence[int]) -> bool:
        """Whether a completion of these token ids ended without an end token."""


class Scorer(Protocol):
    """Scores rollouts ahead of the reward functions, which then wait for what was started."""

    def start(
        self,
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[Any],
        ids: Sequence[Sequence[int]],
        trainer: ScoredTrainer,
    ) -> None:
        """Begin to score; the trainer calls it as soon as a generation batch exists (arguments: `rl.scoring`)."""
