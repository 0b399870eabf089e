"""A reference policy that follows the trained one, in checkpoints: TRL moves it (`sync_ref_model`) and does not save it.

With rl.reference the reference of the KL penalty, and of the likelihood that GRPO-CARE rewards, is an average: after every `every`
updates, reference = decay · reference + (1 - decay) · policy. A checkpoint then holds the reference as of its step, so that a resumed
run goes on with it. Sharded weights (DeepSpeed, FSDP) are not saved, and rl.reference refuses DeepSpeed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from fgrpo.training import checkpoints

FILE = "reference.safetensors"


class MovingReference(checkpoints.AtomicCheckpoints):
    """A mixin for a GRPOTrainer. Without `args.sync_ref_model` it changes nothing."""

    ref_model: Any

    def say(self, text: str) -> None:
        """Log a warning; a subclass says how."""

    def _write_extra(self, folder: Path) -> None:
        super()._write_extra(folder)
        if self._moves_whole():
            save_model(self.accelerator.unwrap_model(self.ref_model), str(folder / FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._moves():
            return
        file = Path(checkpoint) / FILE
        if self._moves_whole() and file.exists():
            load_model(self.accelerator.unwrap_model(self.ref_model), str(file), device=str(self.accelerator.device))
        else:
            self.say(f"{checkpoint} has no {FILE}: the moving reference begins again with the initial policy")

    def _moves(self) -> bool:
        args: Any = self.args
        return bool(args.sync_ref_model) and self.ref_model is not None

    def _moves_whole(self) -> bool:
        return self._moves() and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
