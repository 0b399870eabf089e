"""TRL's shuffle before it cuts micro-batches, by groups: rollouts of one prompt stay adjacent, so that they can share a row.

Within an update, groups follow one another by length. So a micro-batch holds prompts of about one length, and so do the
micro-batches that several processes compute at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from trl.trainer import grpo_trainer


def shuffled(seq_dict: dict[str, Any], update: int | None = None) -> dict[str, Any]:
    """TRL's `shuffle_sequence_dict`, by groups: rollouts of one prompt stay adjacent, and micro-batches hold whole groups.

    Args:
        seq_dict: TRL's batch of this process' generation.
        update: rollouts of an update whose groups are sorted by length; None to leave them shuffled.

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
    mixed = [groups[group] for group in torch.randperm(len(groups)).tolist()]
    if update is not None:
        tokens = (seq_dict["prompt_mask"].sum(dim=1) + seq_dict["completion_mask"].sum(dim=1)).tolist()
        mixed = sorted_within(mixed, tokens, update)
    order = [row for group in mixed for row in group]

    def permuted(values: Any) -> Any:
        if values is None or (isinstance(values, Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, Tensor) else [values[i] for i in order]

    return {key: permuted(values) for key, values in seq_dict.items()}


def sorted_within(groups: list[list[int]], tokens: Sequence[int], update: int) -> list[list[int]]:
    """The groups of each update by their longest rollout; as they are where an update does not hold whole groups.

    Args:
        groups: rows of each group, in order.
        tokens: of each row.
        update: rows of an update.
    """
    out: list[list[int]] = []
    held: list[list[int]] = []
    for group in groups:
        held.append(group)
        rows = sum(map(len, held))
        if rows > update:
            return groups
        if rows == update:
            out += sorted(held, key=lambda group: max(tokens[row] for row in group))
            held = []
    return out + held


_NO, _SHUFFLED = 0, -1  # in place of the rows of an update
_by_group: ContextVar[int] = ContextVar("_by_group", default=_NO)
_shuffle_of_trl = grpo_trainer.shuffle_sequence_dict


def _shuffle(seq_dict: dict[str, Any]) -> dict[str, Any]:
    """TRL's, or that of groups in a context that asks for it: other trainers and threads of the process keep TRL's."""
    rows = _by_group.get()
    if rows == _NO:
        return _shuffle_of_trl(seq_dict)
    return shuffled(seq_dict) if rows == _SHUFFLED else shuffled(seq_dict, rows)


grpo_trainer.shuffle_sequence_dict = _shuffle


@contextmanager
def by_group(update: int | None = None) -> Iterator[None]:
    """Inside, TRL shuffles groups of rollouts instead of rollouts; `update` as in `shuffled`."""
    token = _by_group.set(update or _SHUFFLED)
    try:
        yield
    finally:
        _by_group.reset(token)
