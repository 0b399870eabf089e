"""Qwen3-VL (Bai et al. 2025, "Qwen3-VL Technical Report"), dense models; the Instruct checkpoints can be trained.

What differs from Qwen2.5-VL: a patch of 16 pixels, boxes in thousandths, and DeepStack: features of several vision layers are
added to the hidden states after the first language layers. Norms of queries and keys and the interleaved rotary sections are
transformers' own. Tokenizers have `<think>` as one token, which Instruct checkpoints never learned. Checked against
transformers' class and the chat template in tests/families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fgrpo.boxes import PixelBounds
from fgrpo.policy.backbone import Backbone

if TYPE_CHECKING:
    from torch import Tensor

FACTOR = 32  # a patch has 16 x 16 pixels, and an image token merges 2 x 2 patches


class Qwen3VL(Backbone):
    """With DeepStack, F is H x (1 + D): the features of the last vision layer, then those of D layers before it."""

    def image_features(self, model: Any, pixel_values: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        """As `Backbone.image_features`."""
        import torch

        output = model.model.get_image_features(pixel_values, grids)
        sizes = [len(part) for part in output.pooler_output]
        layers = [torch.split(layer, sizes) for layer in output.deepstack_features]
        return tuple(torch.cat(parts, dim=-1) for parts in zip(output.pooler_output, *layers, strict=True))

    def tower_features(self, output: Any) -> Tensor:
        """As `Backbone.tower_features`."""
        import torch

        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def tower_output(self, tower: Any, features: Tensor) -> Any:
        """As `Backbone.tower_output`."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        last, *layers = features.split(tower.config.out_hidden_size, dim=-1)
        return BaseModelOutputWithDeepstackFeatures(pooler_output=last, deepstack_features=layers)

    def prefill(
        self,
        model: Any,
        ids_UL: Tensor,
        is_image_UL: Tensor,
        features: Sequence[Tensor],
        position_AUL: Tensor,
        mask_UL: Tensor,
        cache: Any,
    ) -> Tensor:
        """As `Backbone.prefill`, through the language model itself, which alone takes features of several layers."""
        import torch

        embeds_ULH = model.get_input_embeddings()(ids_UL)
        deep: dict[str, Any] = {}
        if features:
            last, *layers = torch.cat(list(features)).to(embeds_ULH).split(embeds_ULH.shape[-1], dim=-1)
            embeds_ULH = embeds_ULH.masked_scatter(is_image_UL[..., None], last)
            deep = {"visual_pos_masks": is_image_UL, "deepstack_visual_embeds": layers}
        output = model.model.language_model(
            inputs_embeds=embeds_ULH,
            attention_mask=mask_UL,
            position_ids=position_AUL,
            past_key_values=cache,
            use_cache=True,
            **deep,
        )
        logits_UV: Tensor = model.lm_head(output.last_hidden_state[:, -1])
        return logits_UV


BACKBONE = Qwen3VL(
    model_type="qwen3_vl",
    title="Qwen3-VL",
    model_class_name="Qwen3VLForConditionalGeneration",
    config_class_name="Qwen3VLConfig",
    pixels=PixelBounds(64 * FACTOR**2, 16384 * FACTOR**2, FACTOR),
    processor_files=("processor_config.json", "preprocessor_config.json"),  # transformers 5, and before
    vision="visual",
    projectors=("merger", "deepstack_merger_list"),
    language="language_model",
    image_token="<|image_pad|>",
    image_token_attribute="image_token_id",
    video_token_attribute="video_token_id",
    marker_attributes=("vision_start_token_id", "vision_end_token_id"),
    grid_field="image_grid_thw",
    special_tokens=r"<\|[a-z0-9_]+\|>",
    lora_projections=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    other_modalities=("video",),
    box_frame="thousand",
    untrained_tags=("<think>", "</think>"),
)
