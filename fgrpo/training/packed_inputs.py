"""The arguments of a model's forward pass over rows that share their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fgrpo.policy.backbone import Backbone
from fgrpo.training import branch_attention, shared_prefix
from fgrpo.training.row_images import RowImages
from fgrpo.training.shared_prefix import Layout, Pack


def attention_of(model: Any) -> str:
    """The attention implementation of a model's language model; `model` without wrappers."""
    return str(model.config.get_text_config()._attn_implementation)


def obstacle(model: Any) -> str | None:
    """Why rows of this model, without wrappers, cannot share their prompt; None if they can."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    others = sorted(set(kinds) - {"full_attention"})
    if others:  # a mask of our own would replace a window, and a recurrent layer reads no mask
        return f"the model has layers of the kind {others[0]}"
    attention = attention_of(model)
    return None if branch_attention.takes_branches(attention) else f"{attention} takes no branches"


def can_share(model: Any) -> bool:
    """Whether rows of this model, without wrappers, can share their prompt."""
    return obstacle(model) is None


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether tokens are dropped out in training: the branches of a prompt then share one draw for it."""
    layers = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    config: Any = model.config
    return layers or bool(getattr(config.get_text_config(), "attention_dropout", 0.0))


def packed_inputs(
    model: Any,
    family: Backbone,
    images: RowImages,
    chosen: Sequence[Pack],
    ids_BL: Tensor,
    mask_BL: Tensor,
    completion: int,
) -> tuple[Layout, dict[str, Any]]:
    """The rows of `chosen`, and the forward pass' arguments for them, labels among these.

    Args:
        model: without wrappers.
        ids_BL, mask_BL, completion: as `shared_prefix.packs`.
    """
    heads = [pack.rows[0] for pack in chosen]
    of_images = images.of(heads)
    prompt = slice(ids_BL.shape[1] - completion)
    prompts, known = ids_BL[heads, prompt], mask_BL[heads, prompt]
    is_image = (prompts == family.image_token_id(model.config)) & (known == 1)
    if not of_images:  # the token is written out in a text, and stands for no image
        is_image = torch.zeros_like(is_image)
    position_AUP = family.positions(model, prompts, is_image, of_images.get(family.grid_field), known)
    attention = attention_of(model)
    layout = shared_prefix.lay_out(
        chosen, ids_BL, mask_BL, completion, position_AUP, in_one_row=branch_attention.in_one_row(attention)
    )
    return layout, {
        "input_ids": layout.ids_UL,
        "attention_mask": branch_attention.attention_mask(layout, attention, model.dtype),
        "position_ids": layout.position_AUL,
        "labels": layout.labels_UL,
        **of_images,
    }
