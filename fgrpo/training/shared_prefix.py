"""Responses to one prompt share it: they pass through the model in one row, in which the prompt is computed once.

A packed row is `prompt without its last token | last token, response 1 | last token, response 2 | …`. Each branch (the last
prompt token and a response) attends to the prompt and to itself, and its rotary positions continue from the prompt. So each
response token has the hidden state that it has in a padded row of its own, up to the order of summation. The last prompt
token is repeated because it predicts the first token of every response.

For a group of G rollouts the row has n - 1 + Σ(1 + rₖ) tokens instead of G·n + Σrₖ, and the image is encoded once. How
attention is told of the branches: `fgrpo.training.branch_attention`.
Shapes: B responses, P prompt columns, T response columns, U packed rows of at most L tokens, A axes of the rotary position.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a token that is not scored


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
        branch_UL: the branch of each token, 0 for the prompt and -1 for padding; of rows with one pack each.
        spans: columns of each pack's prompt (without its last token) and of its branches.
        labels_UL: ids of response tokens, `IGNORED` elsewhere.
        packed: (row, column) of the token before each response token, which predicts it, in the packed rows.
        batch: (row, column) of the response token in (B, T).
    """

    ids_UL: Tensor
    position_AUL: Tensor
    branch_UL: Tensor
    spans: tuple[tuple[range, tuple[range, ...]], ...]
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
    longest: int = sys.maxsize,
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


def lay_out(
    chosen: Sequence[Pack],
    ids_BL: Tensor,
    mask_BL: Tensor,
    completion: int,
    position_AUP: Tensor,
    *,
    in_one_row: bool = False,
) -> Layout:
    """The packed rows of `chosen`.

    Args:
        ids_BL, mask_BL, completion: as `packs`.
        position_AUP: rotary positions of the packs' prompts, in the columns that these have in the batch.
        in_one_row: all packs one after the other in a single row, without padding.
    """
    device, prompt = ids_BL.device, ids_BL.shape[1] - completion
    sizes = [pack.tokens for pack in chosen]
    shape = (1, sum(sizes)) if in_one_row else (len(chosen), max(sizes))
    ids_UL = torch.zeros(shape, dtype=ids_BL.dtype, device=device)
    labels_UL = torch.full_like(ids_UL, IGNORED)
    position_AUL = torch.zeros((len(position_AUP), *shape), dtype=position_AUP.dtype, device=device)
    branch_UL = torch.full(shape, -1, dtype=torch.long, device=device)
    at: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    spans = []
    lengths = mask_BL[:, prompt:].sum(dim=1).tolist()
    for n_pack, pack in enumerate(chosen):
        u, begin = (0, sum(sizes[:n_pack])) if in_one_row else (n_pack, 0)
        first = int(prompt - mask_BL[pack.rows[0], :prompt].sum())
        start = begin + prompt - 1 - first
        ids_UL[u, begin:start] = ids_BL[pack.rows[0], first : prompt - 1]
        position_AUL[:, u, begin:start] = position_AUP[:, n_pack, first : prompt - 1]
        branch_UL[u, begin:start] = 0
        last_A = position_AUP[:, n_pack, prompt - 1]
        shared, branches = range(begin, start), []
        for n, row in enumerate(pack.rows, start=1):
            length = lengths[row]
            end = start + 1 + length
            ids_UL[u, start:end] = ids_BL[row, prompt - 1 : prompt + length]
            labels_UL[u, start + 1 : end] = ids_BL[row, prompt : prompt + length]
            # The next position is one more than the largest so far, which the last prompt token, a text token, has.
            position_AUL[:, u, start:end] = last_A[:, None] + torch.arange(1 + length, device=device)
            branch_UL[u, start:end] = n
            branches.append(range(start, end))
            columns = torch.arange(length, device=device)
            at.append((torch.full_like(columns, u), start + columns, torch.full_like(columns, row), columns))
            start = end
        spans.append((shared, tuple(branches)))
    packed_row, packed_column, batch_row, batch_column = (torch.cat(part) for part in zip(*at, strict=True))
    return Layout(
        ids_UL,
        position_AUL,
        branch_UL,
        tuple(spans),
        labels_UL,
        (packed_row, packed_column),
        (batch_row, batch_column),
    )
