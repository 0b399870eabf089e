"""Attention rows of a few tokens, reduced to log-sums per head: over all keys, over those of the image, and over the evidence.

`sums_of` gets the queries and keys of one layer with their rotary positions, and computes the rows of the chosen tokens alone, in
float32 and `BLOCK` queries at a time. Which keys a token sees is read from the mask that the attention function gets.

Sources: the choice of rows and their reduction are ours, for signals in the style of Faithful-MR1 (docs/mr1.md).
Shapes: B rows of the batch, H heads, G key heads, Q queries, L keys, I image keys, D the size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries whose logits over all keys are in memory at once


@dataclass(frozen=True)
class Rows:
    """What is read of one row of the batch.

    Attributes:
        queries: columns (Q,) of the tokens whose attention is read.
        image: columns (I,) of image tokens.
        evidence: columns of the image tokens that count as evidence, a part of `image`; may be empty.
    """

    queries: Tensor
    image: Tensor
    evidence: Tensor


@dataclass(frozen=True)
class Sums:
    """Logarithms of sums of exp(attention logit), (H, Q), over all keys that a token sees, its image keys and its evidence.

    Attributes:
        image_HQI: log-probabilities over the image keys alone (renormalised), None unless asked for.
    """

    every_HQ: Tensor
    image_HQ: Tensor
    evidence_HQ: Tensor
    image_HQI: Tensor | None = None

    @property
    def image_share(self) -> Tensor:
        """(H, Q) share of a token's attention that lies on the image keys."""
        return (self.image_HQ - self.every_HQ).exp()

    @property
    def evidence_share(self) -> Tensor:
        """(H, Q) share of its attention on the image that lies in the evidence; NaN for a token that sees no image key."""
        return (self.evidence_HQ - self.image_HQ).exp()


def sums_of(query: Tensor, key: Tensor, mask: Any, b: int, rows: Rows, scale: float, keep_image: bool) -> Sums:
    """The reduced attention rows of row `b`, in float32 also under autocast.

    Args:
        query: (B, H, L, D) and `key` (B, G, L, D), with their rotary positions.
        mask: what the attention function gets: None, (B, L), (B or 1, 1, L, L), or rows that share their prompt.
        scale: of the products of queries and keys.
        keep_image: whether to keep each row over the image keys.
    """
    with torch.autocast(query.device.type, enabled=False):  # it would make the products of float32 in half precision
        q_HQD, k_GLD = query[b][:, rows.queries].float(), key[b].float()
        parts = rows.queries.split(BLOCK)
        blocks = [
            _block(q_HND, k_GLD, _visible(mask, b, part, k_GLD.shape[1]), rows, scale, keep_image)
            for q_HND, part in zip(q_HQD.split(BLOCK, dim=1), parts, strict=True)
        ]
    every, image, evidence, of_image = zip(*blocks, strict=True)
    kept = torch.cat(of_image, dim=1) if keep_image else None
    return Sums(torch.cat(every, dim=1), torch.cat(image, dim=1), torch.cat(evidence, dim=1), kept)


def _block(
    q_HND: Tensor, k_GLD: Tensor, visible_NL: Tensor, rows: Rows, scale: float, keep_image: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The fields of `Sums` for N of the queries."""
    heads, queries, size = q_HND.shape
    grouped = q_HND.reshape(len(k_GLD), heads // len(k_GLD) * queries, size)  # the heads of one key head are adjacent
    logits_HNL = (torch.matmul(grouped, k_GLD.mT) * scale).view(heads, queries, visible_NL.shape[1])
    logits_HNL = logits_HNL.masked_fill(~visible_NL, -torch.inf)
    image_HNI = logits_HNL[..., rows.image]
    image_HN = image_HNI.logsumexp(-1)
    return (
        logits_HNL.logsumexp(-1),
        image_HN,
        logits_HNL[..., rows.evidence].logsumexp(-1),
        image_HNI - image_HN[..., None] if keep_image else None,
    )


def _visible(mask: Any, b: int, queries: Tensor, length: int) -> Tensor:
    """(Q, L): the keys that each query of row `b` attends to, by the mask that the attention function gets."""
    if hasattr(mask, "visible"):  # `fgrpo.training.branch_attention.Sequences`
        visible: Tensor = mask.visible(queries, length)
        return visible
    if isinstance(mask, Tensor) and mask.ndim == 4:  # sdpa, eager: (B or 1, 1, L, L), true or 0 where attended to
        given = mask[b if len(mask) > 1 else 0, 0][queries, :length]
        return given if given.dtype == torch.bool else given == 0
    causal = torch.arange(length, device=queries.device)[None, :] <= queries[:, None]
    return causal if mask is None else causal & mask[b].bool()[None, :length]  # flash attention: (B, L)
