"""Traces of one question share its row in SFT (`sft.shared_prefix`), in which the question and its images are computed once.

The loss of a micro-batch and its gradients are those of padded rows, up to the order of summation. A micro-batch that padded
rows make smaller keeps them. The order of the traces brings a question's together (`sft.dataset.order`). Rows are not regrouped
by length over the micro-batches of an update: each of these takes the mean over its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from trl import SFTTrainer

from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone
from fgrpo.training import branch_attention, distributed, packed_inputs, shared_prefix
from fgrpo.training.row_images import RowImages
from fgrpo.training.shared_prefix import IGNORED

COUNTS = "num_images"  # of a batch's rows


class SharedPrefix(SFTTrainer):
    """SFTTrainer whose rows share their prompt where they can.

    Attributes:
        shares: whether they do. Set by `share`.
        in_order: whether the training data are in the order in which they are trained on (`sft.dataset`).
    """

    shares = False
    in_order = False

    def share(self) -> None:
        """Begin to share rows; the training data must be in the order in which they are trained on."""
        plain = self.plain_model
        obstacle = packed_inputs.obstacle(plain)
        if obstacle is not None:
            distributed.print_once(f"traces of a question do not share a row: {obstacle}")
        elif packed_inputs.has_dropout(plain):
            distributed.print_once(
                "the policy has dropout, and traces of a question share one draw of it for the question"
            )
        self.shares = True
        self.data_collator = _counting(self.data_collator)

    @property
    def plain_model(self) -> Any:
        """The policy without the wrappers of accelerate and peft."""
        plain: Any = self.accelerator.unwrap_model(self.model)
        return plain.get_base_model() if hasattr(plain, "get_base_model") else plain

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        if not (self.shares or self.in_order):
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        """TRL's, over shared rows."""
        counts = inputs.pop(COUNTS, None)
        if counts is None or not packed_inputs.can_share(self.plain_model):
            return super().compute_loss(model, inputs, *args, **more)
        plain = self.plain_model

        def shared(fused_lm_head: bool = False, use_cache: bool = False, **padded: Any) -> Any:
            given = packed(plain, backbone.of_model(plain), padded, counts) if fused_lm_head else None
            return model(**(padded if given is None else given), fused_lm_head=fused_lm_head, use_cache=use_cache)

        return super().compute_loss(shared, inputs, *args, **more)


def packed(model: Any, family: Backbone, padded: Mapping[str, Any], counts: list[int]) -> dict[str, Any] | None:
    """The forward pass' arguments for shared rows; None where padded rows have no more tokens.

    Args:
        model: without wrappers.
        padded: TRL's: ids, mask and labels (B, L), `IGNORED` up to the response and in the padding; pixels and grids.
        counts: images of each row.
    """
    ids, mask, labels = padded["input_ids"], padded["attention_mask"], padded["labels"]
    scored = labels != IGNORED
    if not bool(scored[:, 1:].any(dim=1).all()):
        return None
    prompts, lengths = scored.int().argmax(dim=1), mask.sum(dim=1)
    ids_BL, mask_BL, completion = _aligned(ids, prompts, lengths)
    images = RowImages({**padded, COUNTS: counts}, family.grid_field)
    attention = packed_inputs.attention_of(model)
    longest = branch_attention.longest(attention)
    chosen = shared_prefix.packs(ids_BL, mask_BL, completion, images.same, longest)
    sizes = [pack.tokens for pack in chosen]
    tokens = sum(sizes) if branch_attention.in_one_row(attention) else len(sizes) * max(sizes)
    if tokens >= ids.numel() or max(sizes) > longest:
        return None
    return packed_inputs.packed_inputs(model, family, images, chosen, ids_BL, mask_BL, completion)[1]


def _aligned(ids: Tensor, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows whose prompts end in one column: ids (B, P + T), mask (B, P + T), T.

    Args:
        ids: (B, L), padded on the right.
        prompts, lengths: (B,), tokens of the prompt and of the row.
    """
    left, right = int(prompts.max()), int((lengths - prompts).max())
    source = torch.arange(left + right, device=ids.device) - (left - prompts)[:, None]
    known = (source >= 0) & (source < lengths[:, None])
    return ids.gather(1, source.clamp(0, ids.shape[1] - 1)) * known, known.long(), right


def _counting(collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """The collator, which also says how many images each row has."""

    def counted(rows: list[dict[str, Any]]) -> Any:
        counts = [len(row["images"]) for row in rows]
        batch = collate(rows)
        batch[COUNTS] = counts
        return batch

    return counted
