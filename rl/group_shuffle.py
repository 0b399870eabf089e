"""TRL's shuffle before it cuts micro-batches, by groups: rollouts of one prompt stay adjacent, so that they can share a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from trl.trainer import grpo_trainer


def shuffled(seq_dict: dict[str, Any]) -> dict[str, Any]:
    """TRL's `shuffle_sequence_dict`, by groups: rollouts of one prompt stay adjacent, and micro-batches hold whole groups.

    Except for the losses of `LogprobPasses._micro_batches_matter`, the loss of an update does not depend on the order of its
    rollouts. Where a generation batch has several updates, these have whole groups too; which ones stays random.
    """
    ids, images = seq_dict["prompt_ids"], seq_dict.get("pixel_values")
    starts = [0]
    for row in range(1, len(ids)):
        alike = torch.equal(ids[row], ids[starts[-1]])
        if alike and images is not None:
            one, other = images[row], images[starts[-1]]
            alike = one is other or (one is not None and other is not None and torch.equal(one, other))
        if not alike:
            starts.append(row)
    groups = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    order = [row for group in torch.randperm(len(groups)).tolist() for row in groups[group]]

    def permuted(values: Any) -> Any:
        if values is None or (isinstance(values, Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, Tensor) else [values[i] for i in order]

    return {key: permuted(values) for key, values in seq_dict.items()}


_by_group: ContextVar[bool] = ContextVar("_by_group", default=False)
_shuffle_of_trl = grpo_trainer.shuffle_sequence_dict


def _shuffle(seq_dict: dict[str, Any]) -> dict[str, Any]:
    """TRL's, or that of groups in a context that asks for it: other trainers and threads of the process keep TRL's."""
    return shuffled(seq_dict) if _by_group.get() else _shuffle_of_trl(seq_dict)


grpo_trainer.shuffle_sequence_dict = _shuffle


@contextmanager
def by_group() -> Iterator[None]:
    """Inside, TRL shuffles groups of rollouts instead of rollouts."""
    token = _by_group.set(True)
    try:
        yield
    finally:
        _by_group.reset(token)
