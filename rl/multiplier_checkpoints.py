"""The multipliers of constraints and of losses in a trainer's checkpoints: `duals.json`, written with each and read on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo.training import checkpoints, stored
from fgrpo.training.finite import NotFinite
from rl.auxiliary_loss import AuxiliaryLoss
from rl.dual import DualAscent
from rl.finished_step import FinishedStep
from rl.moving_reference import MovingReference

DUALS = "duals.json"
logger = logging.getLogger("fgrpo")


class MultiplierCheckpoints(MovingReference):
    """A mixin for `rl.trainer.FaithfulGRPOTrainer`, which sets the attributes.

    Attributes:
        dual: the multipliers.
        auxiliary: losses beside the policy loss, whose own multipliers are saved with these.
    """

    dual: DualAscent
    auxiliary: Sequence[AuxiliaryLoss]
    num_iterations: int
    _step: int
    _before_step: Mapping[str, Any] | None  # the multipliers before the last generation batch's dual step
    _finished: FinishedStep | None  # the state at the end of the last optimizer step

    reads_plain = True
    writes_card = True

    def say(self, text: str) -> None:
        """Log a warning, on the main process only."""
        if self.accelerator.is_main_process:
            logger.warning(text)

    def multipliers_to_save(self) -> Mapping[str, Any]:
        """The multipliers' state for a checkpoint.

        Within a generation batch it is the state before that batch's dual step: a resumed run samples the batch anew, and takes
        the step then.
        """
        args: Any = self.args
        within = self._step % (int(args.steps_per_generation or 1) * self.num_iterations)
        return self._before_step if within and self._before_step is not None else self.dual.state_dict()

    def _write_extra(self, folder: Path) -> None:
        super()._write_extra(folder)
        of_losses = {loss.name: state for loss in self.auxiliary if (state := loss.state_dict())}
        saved = {**self.multipliers_to_save(), **({"losses": of_losses} if of_losses else {})}
        try:
            text = json.dumps(saved, indent=1, allow_nan=False)
        except ValueError as error:
            raise NotFinite(self.state.global_step, "a multiplier is not finite", "nothing was saved") from error
        (folder / DUALS).write_text(text + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._before_step = self._finished = None  # of an earlier training of this trainer
            self._load_multipliers(Path(checkpoint))

    def _load_multipliers(self, checkpoint: Path) -> None:
        path = checkpoint / DUALS
        if not path.exists() and not stored.is_plain(checkpoint):
            raise checkpoints.WrongCheckpoint(
                f"{checkpoint} has no {DUALS}: this trainer did not write it, and its multipliers are lost"
            )
        try:
            saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"constraints": []}
            if self.dual.constraints and saved["constraints"] == []:
                self.say(
                    f"{checkpoint} was trained without constraints: the multipliers begin at "
                    + ", ".join(f"{name} {lam:g}" for name, lam in self.dual.lam.items())
                )
            elif path.exists():
                self.dual.load_state_dict(saved)
            for loss in self.auxiliary:
                if state := (saved.get("losses") or {}).get(loss.name):
                    loss.load_state_dict(state)
        except (ValueError, KeyError, TypeError) as error:
            raise checkpoints.WrongCheckpoint(
                f"{path}: {error}; delete that checkpoint, or give this run its own folder"
            ) from error
