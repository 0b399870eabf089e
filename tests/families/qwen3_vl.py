"""A tiny Qwen3-VL of random weights, in the miniature world's shapes: `build` writes it as a folder of the hub would be.

As in the Instruct checkpoints, the tokenizer has `<think>` and `</think>` as added tokens that are not special, the last ones of
the vocabulary; the output layer has rows beyond them. Queries are wider than the hidden size (6 heads of 32), as at 4B.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from miniworld import tokenizer as tok

FIT_STEPS, FIT_RATE = 60, "3.0e-3"  # SFT after which it knows a few questions by heart
THINK = ("<think>", "</think>")
PADDING_ROWS = 14
HIDDEN, LAYERS, HEADS, KEY_HEADS, HEAD = 128, 4, 6, 2, 32
PATCH, MERGE = 16, 2
MIN_PIXELS, MAX_PIXELS = 32**2, 128**2  # an image of the world is resized to 128 x 128 pixels, which are 16 tokens


def build(folder: Path, seed: int = 0) -> Path:
    """Write configuration, weights, tokenizer and processor to `folder`; returns it."""
    from fgrpo.policy import loading

    loading.ensure_torchvision()
    import torch
    from tokenizers import AddedToken
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = tok.build([tag for tag in tok.TAGS if tag not in THINK])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in THINK])
    tok.save(folder, tokenizer)
    sizes = {
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen3VLVideoProcessor(**sizes),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=files("trl").joinpath("chat_templates", "qwen3_vl.jinja").read_text(encoding="utf-8"),
    ).save_pretrained(folder)
    ids = {name: tok.token_id(tokenizer, name) for name in tok.SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size() + PADDING_ROWS,
            "hidden_size": HIDDEN,
            "intermediate_size": 384,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_HEADS,
            "head_dim": HEAD,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
            },
            "initializer_range": 0.05,
            "bos_token_id": None,
            "eos_token_id": ids[tok.END],
            "pad_token_id": ids[tok.PAD],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 49,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.05,
        },
        image_token_id=ids[tok.IMAGE],
        video_token_id=ids[tok.VIDEO],
        vision_start_token_id=ids[tok.VISION_START],
        vision_end_token_id=ids[tok.VISION_END],
        tie_word_embeddings=True,
        dtype="float32",
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).float()
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id, generation.pad_token_id = ids[tok.END], ids[tok.PAD]
    model.save_pretrained(folder)
    return folder
