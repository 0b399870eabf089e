"""Rollouts of one prompt share it: they pass through the model in one row, in which the prompt is computed once.

A packed row is `prompt without its last token | last token, response 1 | last token, response 2 | …`. Each branch (the last
prompt token and a response) attends to the prompt and to itself, and its rotary positions continue from the prompt. So each
response token has the hidden state that it has in a padded row of its own, up to the order of summation. The last prompt
token is repeated because it predicts the first token of every response.

For a group of G rollouts the row has n - 1 + Σ(1 + rₖ) tokens instead of G·n + Σrₖ, and the image is encoded once.
Shapes: B rollouts, P prompt columns, T response columns, U packed rows of at most L tokens, A axes of the rotary position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # label of a token that is not scored
LONGEST = 4096  # tokens of a packed row: attention over a longer one costs more than the prompt that is saved
ATTENTION = {"sdpa", "eager"}  # implementations that take a mask (B, 1, L, L)


@dataclass(frozen=True)
class Pack:
    """Rollouts of one prompt that share a row; `rows` are theirs in the batch, `tokens` is the row's length."""

    rows: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Layout:
    """Packed rows as arguments of a forward pass, and where in them the batch's response tokens are.

    Attributes:
        ids_UL: token ids, right-padded.
        position_AUL: rotary positions.
        attends_U1LL: True where a token (third axis) attends to another (fourth).
        labels_UL: ids of response tokens, `IGNORED` elsewhere.
        packed: (row, column) of the token before each response token, which predicts it, in the packed rows.
        batch: (row, column) of the response token in (B, T).
    """

    ids_UL: Tensor
    position_AUL: Tensor
    attends_U1LL: Tensor
    labels_UL: Tensor
    packed: tuple[Tensor, Tensor]
    batch: tuple[Tensor, Tensor]

    def spread(self, values_UL: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values at the predicting tokens as (B, T) of the response tokens, 0 for padding; differentiable."""
        return values_UL.new_zeros(shape).index_put(self.batch, values_UL[self.packed])


def packs(
    ids_BL: Tensor,
    mask_BL: Tensor,
    completion: int,
    same_images: Callable[[int, int], bool],
    longest: int = LONGEST,
    most: int | None = None,
) -> list[Pack]:
    """Adjacent rollouts of one prompt together, as far as a row holds them.

    Args:
        ids_BL: prompts, padded on the left, and responses, padded on the right.
        mask_BL: 1 for tokens, 0 for padding.
        completion: T, the columns of responses at the end.
        same_images: whether two rows of the batch have the same images.
        longest: tokens of a packed row; a single rollout may exceed it.
        most: rollouts of a packed row; None for any number.
    """
    prompt = ids_BL.shape[1] - completion
    prompts = (ids_BL[:, :prompt] * mask_BL[:, :prompt]).tolist()
    lengths = mask_BL[:, :prompt].sum(dim=1).tolist()
    responses = mask_BL[:, prompt:].sum(dim=1).tolist()
    found: list[Pack] = []
    for row, response in enumerate(responses):
        has_room = found and found[-1].tokens + 1 + response <= longest and (not most or len(found[-1].rows) < most)
        if has_room:
            head = found[-1].rows[0]
            if lengths[head] == lengths[row] and prompts[head] == prompts[row] and same_images(head, row):
                found[-1] = Pack((*found[-1].rows, row), found[-1].tokens + 1 + response)
                continue
        found.append(Pack((row,), lengths[row] + response))
    return found


def lay_out(chosen: Sequence[Pack], ids_BL: Tensor, mask_BL: Tensor, completion: int, position_AUP: Tensor) -> Layout:
    """The packed rows of `chosen`.

    Args:
        ids_BL, mask_BL, completion: as `packs`.
        position_AUP: rotary positions of the packs' prompts, in the columns that these have in the batch.
    """
    device, prompt = ids_BL.device, ids_BL.shape[1] - completion
    shape = (len(chosen), max(pack.tokens for pack in chosen))
    ids_UL = torch.zeros(shape, dtype=ids_BL.dtype, device=device)
    labels_UL = torch.full_like(ids_UL, IGNORED)
    position_AUL = torch.zeros((len(position_AUP), *shape), dtype=position_AUP.dtype, device=device)
    branch_UL = torch.full(shape, -1, dtype=torch.long, device=device)  # 0: the prompt; -1: padding
    at: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    lengths = mask_BL[:, prompt:].sum(dim=1).tolist()
    for u, pack in enumerate(chosen):
        first = int(prompt - mask_BL[pack.rows[0], :prompt].sum())
        shared = prompt - 1 - first
        ids_UL[u, :shared] = ids_BL[pack.rows[0], first : prompt - 1]
        position_AUL[:, u, :shared] = position_AUP[:, u, first : prompt - 1]
        branch_UL[u, :shared] = 0
        last_A = position_AUP[:, u, prompt - 1]
        start = shared
        for n, row in enumerate(pack.rows, start=1):
            length = lengths[row]
            end = start + 1 + length
            ids_UL[u, start:end] = ids_BL[row, prompt - 1 : prompt + length]
            labels_UL[u, start + 1 : end] = ids_BL[row, prompt : prompt + length]
            # The next position is one more than the largest so far, which the last prompt token, a text token, has.
            position_AUL[:, u, start:end] = last_A[:, None] + torch.arange(1 + length, device=device)
            branch_UL[u, start:end] = n
            columns = torch.arange(length, device=device)
            at.append((torch.full_like(columns, u), start + columns, torch.full_like(columns, row), columns))
            start = end
    packed_row, packed_column, batch_row, batch_column = (torch.cat(part) for part in zip(*at, strict=True))
    return Layout(
        ids_UL,
        position_AUL,
        attention_mask(branch_UL),
        labels_UL,
        (packed_row, packed_column),
        (batch_row, batch_column),
    )


def attention_mask(branch_UL: Tensor) -> Tensor:
    """(U, 1, L, L): which earlier tokens a token attends to: those of the prompt (0) and of its own branch.

    Padding (-1) attends to earlier padding and itself, so that no row of the softmax is empty.
    """
    own_ULL = branch_UL[:, :, None] == branch_UL[:, None, :]
    shared_ULL = (branch_UL[:, None, :] == 0) & (branch_UL[:, :, None] > 0)
    return (own_ULL | shared_ULL).tril()[:, None]


def additive(attends: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as eager attention adds it to its scores."""
    return torch.zeros_like(attends, dtype=dtype).masked_fill(~attends, torch.finfo(dtype).min)


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
