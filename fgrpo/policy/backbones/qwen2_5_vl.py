"""Qwen2.5-VL (Bai et al. 2025), the paper's policy (Section 4.1).

Checked against transformers' class and the chat template in tests/fgrpo/test_backbone.py.
"""

from fgrpo.boxes import PixelBounds
from fgrpo.policy.backbone import Backbone

FACTOR = 28  # a patch has 14 x 14 pixels, and an image token merges 2 x 2 patches

BACKBONE = Backbone(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    model_class_name="Qwen2_5_VLForConditionalGeneration",
    config_class_name="Qwen2_5_VLConfig",
    pixels=PixelBounds(4 * FACTOR**2, 16384 * FACTOR**2, FACTOR),
    processor_files=("processor_config.json", "preprocessor_config.json"),  # transformers 5, and before
    vision="visual",
    projectors=("merger",),
    language="language_model",
    image_token="<|image_pad|>",
    image_token_attribute="image_token_id",
    video_token_attribute="video_token_id",
    marker_attributes=("vision_start_token_id", "vision_end_token_id"),
    grid_field="image_grid_thw",
    special_tokens=r"<\|[a-z0-9_]+\|>",
    lora_projections=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    other_modalities=("video",),
)
