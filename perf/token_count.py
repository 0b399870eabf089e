"""Counts the tokens of a trainer's passes: those that rollouts or traces have, those needed, and those computed with padding.

`real`: every rollout with its own prompt. `needed`: real, a shared prompt once. `computed`: rows as wide as the model gets them.
So computed / needed is the cost of padding, and computed / real what a pass costs against rows without padding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from fgrpo.training import shared_prefix


@dataclass
class Tokens:
    """Tokens of some passes."""

    real: int = 0
    needed: int = 0
    computed: int = 0

    def add(self, real: int = 0, needed: int = 0, computed: int = 0) -> None:
        self.real += real
        self.needed += needed
        self.computed += computed

    @property
    def ratio(self) -> float:
        """Computed over real."""
        return self.computed / self.real

    @property
    def padding(self) -> float:
        """Computed over needed."""
        return self.computed / self.needed


@dataclass
class Count:
    """Tokens by pass: "logprobs" (old and reference policy, without gradients), and "update"."""

    logprobs: Tokens = field(default_factory=Tokens)
    update: Tokens = field(default_factory=Tokens)

    @property
    def now(self) -> Tokens:
        """Those of the pass that runs."""
        return self.update if torch.is_grad_enabled() else self.logprobs


@contextmanager
def of_rollouts(trainer: Any) -> Iterator[Count]:
    """Counts the log-prob passes of an RL trainer within the block, without those of the preflight (`rl.dry_run`)."""
    count, inner = Count(), trainer._get_per_token_logps_and_entropies
    lay_out = shared_prefix.lay_out

    def forward(_: Any, args: Any, given: dict[str, Any]) -> None:
        ids, mask = given["input_ids"], given["attention_mask"]
        is_padded = isinstance(mask, torch.Tensor) and mask.ndim == 2
        count.now.add(computed=ids.numel(), needed=int(mask.sum()) if is_padded else 0)

    def packed(chosen: Any, *args: Any, **more: Any) -> Any:
        count.now.add(needed=sum(pack.tokens for pack in chosen))
        return lay_out(chosen, *args, **more)

    def passes(model: Any, input_ids: Any, attention_mask: Any, *args: Any, **more: Any) -> Any:
        if _in_preflight():
            return inner(model, input_ids, attention_mask, *args, **more)
        count.now.add(real=int(attention_mask.sum()))
        hook = model.register_forward_pre_hook(forward, with_kwargs=True)
        try:
            with mock.patch.object(shared_prefix, "lay_out", packed):
                return inner(model, input_ids, attention_mask, *args, **more)
        finally:
            hook.remove()

    trainer._get_per_token_logps_and_entropies = passes
    try:
        yield count
    finally:
        del trainer._get_per_token_logps_and_entropies


@contextmanager
def of_traces(trainer: Any) -> Iterator[Count]:
    """Counts the training passes of an SFT trainer within the block, as `update`."""
    count, inner = Count(), trainer.compute_loss
    lay_out = shared_prefix.lay_out

    def packed(chosen: Any, *args: Any, **more: Any) -> Any:
        count.update.add(needed=sum(pack.tokens for pack in chosen))
        return lay_out(chosen, *args, **more)

    def forward(_: Any, args: Any, given: dict[str, Any]) -> None:
        ids, mask = given["input_ids"], given["attention_mask"]
        is_padded = isinstance(mask, torch.Tensor) and mask.ndim == 2
        count.update.add(computed=ids.numel(), needed=int(mask.sum()) if is_padded else 0)

    def loss(model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        if _in_preflight():
            return inner(model, inputs, *args, **more)
        count.update.add(real=int(inputs["attention_mask"].sum()))
        hook = model.register_forward_pre_hook(forward, with_kwargs=True)
        try:
            with mock.patch.object(shared_prefix, "lay_out", packed):
                return inner(model, inputs, *args, **more)
        finally:
            hook.remove()

    trainer.compute_loss = loss
    try:
        yield count
    finally:
        del trainer.compute_loss


def _in_preflight() -> bool:
    """Whether a preflight calls: its frames are below this one."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in ("rl.dry_run", "sft.preflight"):
            return True
        frame = frame.f_back
    return False
