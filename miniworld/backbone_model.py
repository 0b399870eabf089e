"""Architecture of the mini backbone: the real Qwen2_5_VLForConditionalGeneration and processor with small dimensions.

`build` creates an untrained model. `save` writes a folder that `AutoProcessor` and
`Qwen2_5_VLForConditionalGeneration.from_pretrained` load like any Qwen2.5-VL. Constraints on the dimensions: `mrope_section`
sums to half a head; the vision `out_hidden_size` equals the text hidden size; patch 14 and merge 2 as in Qwen2.5-VL; at most
12544 pixels, which is 4 x 4 image tokens; heads of size 32, which vLLM's CPU attention supports; token ids come from the
tokenizer; the chat template is TRL's own copy of Qwen2.5-VL's (TRL recognises it by exact equality).
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from miniworld import tokenizer as tok
from miniworld.scene import PIXELS

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

HIDDEN, LAYERS, HEADS, FEED_FORWARD = 128, 4, 4, 384
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS, VISION_FEED_FORWARD = 96, 2, 4, 256
PATCH, MERGE = 14, 2
ROPE_THETA = 1e6
INIT_RANGE = 0.05
MAX_POSITIONS = 1024
MIN_PIXELS, MAX_PIXELS = (PATCH * MERGE) ** 2, PIXELS**2


def mrope_section(head_dim: int) -> list[int]:
    """Sizes of the time, height and width sections of half a head, in Qwen2.5-VL's proportions (16, 24, 24 of 64)."""
    half = head_dim // 2
    side = 3 * half // 8
    return [half - 2 * side, side, side]


def build(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained model (1.4M parameters, fp32). The same seed gives the same weights."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tok.build()
    ids = {name: tok.token_id(tokenizer, name) for name in tok.SPECIAL}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": ROPE_THETA,
            "mrope_section": mrope_section(HIDDEN // HEADS),
        },
        "initializer_range": INIT_RANGE,
        "bos_token_id": None,
        "eos_token_id": ids[tok.END],
        "pad_token_id": ids[tok.PAD],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_FEED_FORWARD,
        "num_heads": VISION_HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": PIXELS,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": list(range(VISION_LAYERS)),
        "initializer_range": INIT_RANGE,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[tok.IMAGE],
        video_token_id=ids[tok.VIDEO],
        vision_start_token_id=ids[tok.VISION_START],
        vision_end_token_id=ids[tok.VISION_END],
        tie_word_embeddings=True,
        dtype="float32",
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id, generation.pad_token_id = ids[tok.END], ids[tok.PAD]
    return model.float()


def save_processor(folder: Path) -> None:
    """Write tokenizer, image processor, video processor and chat template to `folder`."""
    from fgrpo.policy import loading

    loading.ensure_torchvision()
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tok.save(folder)
    sizes = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "patch_size": PATCH, "merge_size": MERGE}
    template = files("trl").joinpath("chat_templates", "qwen2_5_vl.jinja").read_text(encoding="utf-8")
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=template,
    )
    processor.save_pretrained(folder)


def save(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write model and processor to `folder`: config, model.safetensors (fp32), tokenizer, processor."""
    folder.mkdir(parents=True, exist_ok=True)
    save_processor(folder)
    model.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["vision_config"]["out_hidden_size"] == config["text_config"]["hidden_size"]
