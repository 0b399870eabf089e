"""Training that has diverged: a step whose loss or gradient norm is not finite stops the run, or is skipped and counted.

`FiniteSteps` is a mixin for transformers trainers. It also keeps weights that are not finite out of every checkpoint. Under
DeepSpeed the update happens inside the backward pass, so a diverged step is noticed after it, and `skip` is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from fgrpo.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import Trainer as _Base
else:
    _Base = object


class NotFinite(UserError):
    """Training produced a number that is not finite.

    Attributes:
        step: the optimizer step.
        cause: what is not finite.
    """

    def __init__(self, step: int, cause: str, effect: str = "the step was not taken") -> None:
        super().__init__(
            f"step {step}: {cause}; training has diverged, and {effect}. Lower the learning rate (another "
            "experiment), or set nonfinite=skip of this stage to leave such steps out (not under DeepSpeed), then rerun to resume "
            "from the last checkpoint"
        )
        self.step, self.cause = step, cause


class FiniteSteps(_Base):
    """Checks each step's loss and gradient norm before the optimizer uses them.

    Attributes:
        nonfinite: what a step with a number that is not finite does.
        skipped: {step: cause} of skipped steps that no log line has reported yet (`take_skipped`).
    """

    nonfinite: Literal["stop", "skip"] = "stop"
    _wrong_loss: str | None = None

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        """As the trainer's; remembers a loss that is not finite."""
        import torch

        loss: torch.Tensor = super().training_step(*args, **more)
        if not bool(torch.isfinite(loss).all()):
            self._wrong_loss = f"the loss is {loss.mean().item()}"
            if self.nonfinite == "skip":  # the running mean of the log would stay NaN
                return torch.zeros_like(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As the trainer's. Called once per optimizer step, before the optimizer's."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        cause, self._wrong_loss = self._wrong_loss, None
        scales_gradients = getattr(self.accelerator, "scaler", None) is not None  # fp16 skips overflows itself
        value = None if norm is None or scales_gradients else float(norm)
        if cause is None and value is not None and not math.isfinite(value):
            cause = f"the gradient norm is {value}"
        if self._anywhere(cause is not None):
            self._diverged(model, cause or "the loss or gradient norm of another process is not finite")
        return norm

    def _diverged(self, model: Any, cause: str) -> None:
        step = self.state.global_step + 1
        if self.nonfinite == "stop" or self.is_deepspeed_enabled:
            effect = "the step may have been taken" if self.is_deepspeed_enabled else "the step was not taken"
            raise NotFinite(step, cause, effect)
        model.zero_grad(set_to_none=True)  # the optimizer leaves parameters without a gradient as they are
        self.skipped[step] = cause

    @property
    def skipped(self) -> dict[int, str]:
        """Skipped steps since `take_skipped`."""
        found: dict[int, str] = self.__dict__.setdefault("_skipped", {})
        return found

    def take_skipped(self) -> dict[int, str]:
        """{step: cause} of the skipped steps since the last call."""
        taken = dict(self.skipped)
        self.skipped.clear()
        return taken

    def wrong_tensor(self) -> str | None:
        """The name of a weight or optimizer state of this process that is not finite; None if all are finite."""
        import torch

        model: Any = self.model
        wrong = [f"weight {name}" for name in not_finite(model.named_parameters())]
        if not wrong and self.optimizer is not None and not self.is_deepspeed_enabled:
            states = (
                (f"{k}/{key}", tensor)
                for k, state in enumerate(self.optimizer.state.values())
                for key, tensor in state.items()
                if isinstance(tensor, torch.Tensor)
            )
            wrong = [f"optimizer state {name}" for name in not_finite(states)]
        return wrong[0] if wrong else None

    def check_finite(self) -> None:
        """Raise `NotFinite`, on every process, if a weight or optimizer state is not finite."""
        wrong = self.wrong_tensor()
        if self._anywhere(wrong is not None):
            raise NotFinite(
                self.state.global_step, f"{wrong or 'a weight of another process'} is not finite", "nothing was saved"
            )

    def _anywhere(self, is_wrong: bool) -> bool:
        """Whether any process says so; every process must call it."""
        if self.args.world_size == 1:
            return is_wrong
        import torch

        flag = torch.tensor([float(is_wrong)], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).max() > 0)


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
    """Names of the tensors that hold NaN or infinity. The extremes of a tensor show both, without a copy of it."""
    import torch

    for name, tensor in tensors:
        part = getattr(tensor, "ds_tensor", tensor).detach()  # ZeRO-3: this process' part
        part = part.to_local() if hasattr(part, "to_local") else part  # FSDP: the same
        if (
            part.numel()
            and part.is_floating_point()
            and not bool(torch.isfinite(torch.stack(torch.aminmax(part))).all())
        ):
            yield name
