"""Losses beside the policy loss: loss = TRL's policy loss + sum of weight × auxiliary loss, once per micro-batch.

An auxiliary loss is one module of `rl/auxiliary` with a constant `AUXILIARY`: a dataclass that is an `AuxiliaryLoss`. Its further
fields are its options in YAML, `rl.auxiliary.<name>: {weight: …, options: {…}}`.

The order in one micro-batch (`AuxiliaryLosses._compute_loss`):
1. TRL's `_compute_loss` makes the pass of the policy, inside the losses' `watching` contexts (an attention tap, for example).
2. Each loss is called. `trainer.policy_logps_BT` holds the log-probabilities of that pass with their gradient, so that a loss
   on them costs no pass of its own.

Scale: TRL divides the policy loss by the number of accumulated micro-batches, and transformers does not scale it again. So an
auxiliary loss, a mean over its micro-batch, is divided by the same number; DDP and DeepSpeed average over the processes.
Micro-batches have equally many rollouts, so the sum over them is the mean over the update. A loss that makes passes of its own
makes equally many on every process and in every micro-batch: under FSDP and ZeRO-3 the processes wait for one another in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor

from fgrpo.errors import UserError, unknown
from fgrpo.plugins import load_plugin
from rl.passes import LogprobPasses

PREFIX = "aux"  # of the keys in the log
ROW = "row"  # of a micro-batch: which of `AuxiliaryLosses.samples` each rollout answers; a preflight's batch has none
COUNT = "/count"  # ends the keys of how many rollouts a sum is over, until it is logged


@dataclass(frozen=True)
class Mean:
    """A mean over rollouts of which micro-batches and processes have different numbers: its sum, and their number."""

    total: float
    count: int


Figures = Mapping[str, float | Mean]


class AuxiliaryLoss(Protocol):
    """A differentiable loss on the policy. Subclasses must define the call; the other methods, as they inherit them, do nothing.

    Attributes:
        name: its key in the log, `aux/<name>`.
        weight: factor of the loss. It is read in each micro-batch, so it may move; a negative one raises the loss.
    """

    name: str
    weight: float

    def check(self, trainer: AuxiliaryLosses) -> None:
        """Called before the first step, when model and data are in place. Raises UserError if the loss cannot be computed."""

    def during(self, trainer: AuxiliaryLosses) -> AbstractContextManager[Any]:
        """The context in which the trainer trains, backward passes included."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as plain JSON."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises ValueError if it does not fit."""

    def watching(self, trainer: AuxiliaryLosses, model: Any, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """The context in which the policy's own pass over a micro-batch is made."""
        return nullcontext()

    def __call__(
        self, trainer: AuxiliaryLosses, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[Tensor | None, Figures]:
        """The loss of one micro-batch, after the policy's own pass.

        Args:
            model: the policy as TRL passes it on, in its wrappers.
            inputs: TRL's micro-batch: `completion_ids` (B, T), `completion_mask` (B, T), `pixel_values`, …

        Returns:
            A scalar with gradient, a mean over the micro-batch, or None where it does not apply; and figures for the log, by name:
            numbers of which the log has the mean, and `Mean`s, of which it has the mean over their rollouts.
        """
        ...


def load(name: str, weight: float, options: Mapping[str, Any]) -> AuxiliaryLoss:
    """The loss of rl/auxiliary/<name>.py with these options.

    Raises:
        UserError: no such loss or option (names the nearest), or a value that the loss refuses.
    """
    kind = load_plugin("rl.auxiliary", name, "AUXILIARY", "auxiliary loss")
    known = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in ("name", "weight")]
    for option in options:
        if option not in known:
            raise unknown(f"option of rl.auxiliary.{name}", option, known)
    try:
        loss: AuxiliaryLoss = kind(weight=weight, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"rl.auxiliary.{name}: {error}") from error
    return loss


def check_unique(losses: Sequence[AuxiliaryLoss]) -> None:
    """Raise ValueError if two losses have one name."""
    names = [loss.name for loss in losses]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two auxiliary losses are called {twice[0]!r}; their log lines would mix")


class AuxiliaryLosses(LogprobPasses):
    """A GRPOTrainer with auxiliary losses.

    Attributes:
        auxiliary: the losses.
        policy_logps_BT: log-probabilities (B, T) of the policy's own pass over the present micro-batch, with gradient; None
            outside a loss.
    """

    auxiliary: Sequence[AuxiliaryLoss] = ()
    policy_logps_BT: Tensor | None = None
    _keeps_logps = False
    _samples: Mapping[bool, Sequence[str]] = MappingProxyType({})  # by whether the batch is for training

    @property
    def samples(self) -> Sequence[str]:
        """The column "sample" of the present generation batch, training or evaluation; "" where the data has none."""
        return self._samples[self._in_training]

    @property
    def _in_training(self) -> bool:
        model: Any = self.model
        return bool(model.training)

    def train(self, *args: Any, **more: Any) -> Any:
        """As TRL's, inside the losses' `during` contexts."""
        with ExitStack() as contexts:
            for loss in self.auxiliary:
                contexts.enter_context(loss.during(self))
            return super().train(*args, **more)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch, with the place of each rollout's sample."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.auxiliary:
            output[ROW] = torch.arange(len(inputs), device=output["completion_ids"].device)
            own = {self._in_training: [str(row.get("sample", "")) for row in inputs]}
            self._samples = {**self._samples, **own}
        return output

    def _get_per_token_logps_and_entropies(
        self, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        result = super()._get_per_token_logps_and_entropies(*args, **more)
        if self._keeps_logps:
            self.policy_logps_BT = result[0]
        return result

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """TRL's loss of a micro-batch, plus the weighted auxiliary ones."""
        if not self.auxiliary:
            policy: Tensor = super()._compute_loss(model, inputs)
            return policy
        with self.own_pass(model, inputs):
            total: Tensor = super()._compute_loss(model, inputs)
        is_training = self.model is not None and bool(self.model.training)
        micro_batches = self.current_gradient_accumulation_steps if is_training else 1
        for loss, value, figures in self.auxiliary_values(model, inputs):
            self._log_auxiliary("train" if is_training else "eval", loss, value, figures)
            if value is not None:
                total = total + loss.weight * value / micro_batches
        return total

    @contextmanager
    def own_pass(self, model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Inside, the policy's own pass over a micro-batch is watched and its log-probabilities are kept."""
        with ExitStack() as contexts:
            for loss in self.auxiliary:
                contexts.enter_context(loss.watching(self, model, inputs))
            self._keeps_logps = True
            try:
                yield
            finally:
                self._keeps_logps = False

    def auxiliary_values(
        self, model: Any, inputs: Mapping[str, Any]
    ) -> Iterator[tuple[AuxiliaryLoss, Tensor | None, Figures]]:
        """Each loss with its value and figures, after `own_pass`.

        Raises:
            ValueError: a value that is not a scalar, or has no gradient although one is wanted.
        """
        try:
            for loss in self.auxiliary:
                value, figures = loss(self, model, inputs)
                if value is not None and value.ndim != 0:
                    raise ValueError(
                        f"the auxiliary loss {loss.name!r} is no scalar: its shape is {tuple(value.shape)}"
                    )
                if value is not None and torch.is_grad_enabled() and not value.requires_grad:
                    raise ValueError(f"the auxiliary loss {loss.name!r} has no gradient, so it would train nothing")
                yield loss, value, figures
        finally:
            self.policy_logps_BT = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, which has the mean of each list; those of a `Mean` become the mean over its rollouts."""
        figures = self._metrics["train" if self._in_training else "eval"]
        for key in [key for key in figures if key.startswith(f"{PREFIX}/") and key.endswith(COUNT)]:
            total = key.removesuffix(COUNT)
            figures[total] = [sum(figures[total]) / sum(figures.pop(key))]
        super().log(logs, start_time)

    def _log_auxiliary(self, mode: str, loss: AuxiliaryLoss, value: Tensor | None, figures: Figures) -> None:
        """Note means over the processes to which each figure is known, and sums of a `Mean`; what is known to none is left out."""
        own: dict[str, float | Mean] = {f"{PREFIX}/{loss.name}/{key}": figure for key, figure in figures.items()}
        own[f"{PREFIX}/{loss.name}/weight"] = float(loss.weight)
        if value is not None:
            own[f"{PREFIX}/{loss.name}"] = float(value.detach())
        everywhere = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        for key in sorted({key for found in everywhere for key in found}):
            known = [found[key] for found in everywhere if key in found]
            means = [one for one in known if isinstance(one, Mean)]
            if count := sum(one.count for one in means):
                self._metrics[mode][key].append(sum(one.total for one in means))
                self._metrics[mode][key + COUNT].append(count)
            numbers = [float(one) for one in known if not isinstance(one, Mean)]
            if numbers:
                self._metrics[mode][key].append(sum(numbers) / len(numbers))
