"""What each attention implementation of transformers is told, so that branches see their prompt and themselves alone.

- sdpa, eager: a mask (U, 1, L, L).
- flash attention: no mask. Each branch is a sequence of its own, whose keys are the prompt's and its own (`Sequences`): the
  kernel's variable lengths, causal from the end. The keys of a prompt are gathered once per branch; everything else of a
  layer works on the shared row, also under gradient checkpointing.

transformers 5.17 refuses flex attention for Qwen2.5-VL, so its block masks are not used. Any other implementation takes no branches, and the caller's rows do not share a prompt.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_flash_attention_utils import flash_attn_supports_top_left_mask

from fgrpo.training.shared_prefix import Layout

MASKED = ("sdpa", "eager")
FLASH = ("flash_attention_2", "flash_attention_3")
LONGEST = 4096  # tokens of a row with a mask: a longer one costs more than the prompt that is saved


def takes_branches(attention: str) -> bool:
    """Whether rows of this implementation can share their prompt."""
    if attention in FLASH:
        return not flash_attn_supports_top_left_mask()  # old kernels align a short query with the first keys
    return attention in MASKED


def in_one_row(attention: str) -> bool:
    """Whether all packs of a pass make one row, without padding."""
    return attention in FLASH


def longest(attention: str) -> int:
    """Tokens that a shared row may have."""
    return sys.maxsize if attention in FLASH else LONGEST


def attention_mask(layout: Layout, attention: str, dtype: torch.dtype) -> Any:
    """The argument `attention_mask` of a model's forward pass over the layout's rows.

    Args:
        layout: in one row if `in_one_row`.
        attention: the implementation of the language model.
        dtype: the model's.
    """
    if attention in FLASH:
        _install(attention)
        return Sequences.of(layout)
    attends = dense_mask(layout.branch_UL)
    return additive(attends, dtype) if attention == "eager" else attends


def dense_mask(branch_UL: Tensor) -> Tensor:
    """(U, 1, L, L): which earlier tokens a token attends to: those of the prompt (0) and of its own branch.

    Padding (-1) attends to earlier padding and itself, so that no row of the softmax is empty.
    """
    own_ULL = branch_UL[:, :, None] == branch_UL[:, None, :]
    shared_ULL = (branch_UL[:, None, :] == 0) & (branch_UL[:, :, None] > 0)
    return (own_ULL | shared_ULL).tril()[:, None]


def additive(attends: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as eager attention adds it to its scores."""
    return torch.zeros_like(attends, dtype=dtype).masked_fill(~attends, torch.finfo(dtype).min)


@dataclass(frozen=True, eq=False, repr=False)
class Sequences(BlockMask):
    """The packed row as sequences of flash attention's variable lengths.

    transformers hands a `BlockMask` of four dimensions to the layers of every family as it is; nothing else of it is used.

    Attributes:
        keys: columns of the row, the keys of one sequence after those of the other.
        starts_q, starts_k: where each sequence's queries and keys begin, and the end of the last.
        longest_q, longest_k: of one sequence.
    """

    keys: Tensor
    starts_q: Tensor
    starts_k: Tensor
    longest_q: int
    longest_k: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, 1, queries, keys)."""
        return 1, 1, int(self.starts_q[-1]), len(self.keys)

    @classmethod
    def of(cls, layout: Layout) -> Sequences:
        """Those of a layout in one row."""
        keys: list[Tensor] = []
        lengths_q: list[int] = []
        device = layout.ids_UL.device
        for prompt, branches in layout.spans:
            shared = torch.arange(prompt.start, prompt.stop, device=device)
            if len(shared):
                keys.append(shared)
                lengths_q.append(len(shared))
            for branch in branches:
                own = torch.arange(branch.start, branch.stop, device=device)
                keys.append(torch.cat([shared, own]))
                lengths_q.append(len(own))
        lengths_k = [len(part) for part in keys]
        return cls(
            torch.cat(keys), _starts(lengths_q, device), _starts(lengths_k, device), max(lengths_q), max(lengths_k)
        )

    def visible(self, queries: Tensor, length: int) -> Tensor:
        """(Q, `length`): the columns of the row to which each of the columns `queries` (Q,) attends."""
        seen = torch.zeros(len(queries), length, dtype=torch.bool, device=queries.device)
        of_query = torch.searchsorted(self.starts_q, queries.to(self.starts_q.dtype), right=True) - 1
        for row, (query, n) in enumerate(zip(queries.tolist(), of_query.tolist(), strict=True)):
            after = int(self.starts_q[n + 1]) - 1 - query  # tokens of the sequence after the query
            seen[row, self.keys[int(self.starts_k[n]) : int(self.starts_k[n + 1]) - after]] = True
        return seen


def _starts(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def _install(attention: str) -> None:
    """Teach transformers' flash attention `Sequences` in place of a mask; all other calls pass through."""
    if AttentionInterface().get(attention) is not _flash:
        AttentionInterface.register(attention, _flash)


def _flash(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """transformers' `flash_attention_forward`; query, key and value are (U, heads, L, H)."""
    if isinstance(attention_mask, Sequences):
        given, attention_mask = attention_mask, None
        key, value = key.index_select(2, given.keys), value.index_select(2, given.keys)
        more |= {
            "cu_seq_lens_q": given.starts_q, "cu_seq_lens_k": given.starts_k,
            "max_length_q": given.longest_q, "max_length_k": given.longest_k,
        }  # fmt: skip
    return flash_attention_forward(module, query, key, value, attention_mask, **more)
