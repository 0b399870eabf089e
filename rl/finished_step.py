"""The state that sampling changes before a step is finished: random number generators, TRL's count of tokens, multipliers.

Judges may fail after a generation. The checkpoint that is then written must hold the state before that generation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from rl.multiplier_checkpoints import MultiplierCheckpoints


@dataclass(frozen=True)
class FinishedStep:
    """The state of this process at the end of an optimizer step."""

    python: Any
    numpy: Any
    cpu: Tensor
    gpus: tuple[Tensor, ...]
    tokens_seen: float
    multipliers: Mapping[str, Any]

    @classmethod
    def of(cls, trainer: MultiplierCheckpoints) -> Self:
        """The present state."""
        gpus = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else ()
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            gpus,
            trainer.state.num_input_tokens_seen,
            trainer.multipliers_to_save(),
        )

    def restore(self, trainer: MultiplierCheckpoints) -> None:
        """Return to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(list(self.gpus))
        state: Any = trainer.state  # transformers declares an integer, and TRL adds floats to it
        state.num_input_tokens_seen = self.tokens_seen
        trainer.dual.load_state_dict(self.multipliers)
