"""A small model in the layout of Qwen2.5-VL-7B-Instruct on the hub: the same files and keys, true vocabulary, few layers.

The layout is the hub's cache, so that the preset finds the model under its own name with HF_HUB_OFFLINE=1. Kept as in the 7B
model: vocabulary, head size, multimodal rotary sections, patch, merge, windows of the vision blocks, bounds of pixels, an
untied output layer, sharded bfloat16 weights, a config.json whose text keys are at its top level, and
preprocessor_config.json beside chat_template.json. `warm` teaches it one form of reply, so that some rollouts are right.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from fgrpo.policy import loading
from fgrpo.policy.backbone import default

REVISION = "0" * 40
INIT_RANGE = 0.02


@dataclass(frozen=True)
class Shapes:
    """Dimensions of the stand-in; `vocabulary` are the rows of the output layer."""

    vocabulary: int = 152_064
    hidden: int = 256
    layers: int = 2
    heads: int = 2
    key_heads: int = 1
    feed_forward: int = 512
    vision_hidden: int = 160
    vision_layers: int = 4
    vision_heads: int = 2
    vision_feed_forward: int = 320
    full_attention: tuple[int, ...] = (3,)  # the vision blocks without windows


def config_json(shapes: Shapes, ids: dict[str, int]) -> dict[str, Any]:
    """The config.json as the hub has it; `ids` are the special tokens'."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": shapes.hidden,
        "initializer_range": INIT_RANGE,
        "intermediate_size": shapes.feed_forward,
        "max_position_embeddings": 128_000,
        "max_window_layers": shapes.layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": shapes.heads,
        "num_hidden_layers": shapes.layers,
        "num_key_value_heads": shapes.key_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32_768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": shapes.vision_layers,
            "hidden_act": "silu",
            "hidden_size": shapes.vision_hidden,
            "intermediate_size": shapes.vision_feed_forward,
            "num_heads": shapes.vision_heads,
            "in_chans": 3,
            "out_hidden_size": shapes.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": list(shapes.full_attention),
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": shapes.vocabulary,
    }


def preprocessor_json() -> dict[str, Any]:
    """The preprocessor_config.json as the hub has it, with the family's own bounds of pixels."""
    pixels = default().pixels
    return {
        "min_pixels": pixels.min_pixels,
        "max_pixels": pixels.max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def save_small_files(folder: Path, shapes: Shapes, ids: dict[str, int]) -> None:
    """Write all files but the tokenizer's and the weights."""
    template = files("trl").joinpath("chat_templates", "qwen2_5_vl.jinja").read_text(encoding="utf-8")
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }
    for name, content in (
        ("config.json", config_json(shapes, ids)),
        ("preprocessor_config.json", preprocessor_json()),
        ("chat_template.json", {"chat_template": template}),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def special_ids(folder: Path) -> dict[str, int]:
    """Ids of the added tokens of the tokenizer in `folder`."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def cache_folder(hub: Path, name: str) -> Path:
    """The snapshot folder of model `name` in the hub cache `hub` (HF_HUB_CACHE); its `refs/main` is written too."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
    return snapshot


def build(folder: Path, shapes: Shapes, seed: int) -> Any:
    """An untrained model of the config.json in `folder`, in fp32. The same seed gives the same weights."""
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder)).float()
    assert model.get_output_embeddings().weight.shape == (shapes.vocabulary, shapes.hidden)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return model


def replies(rng: random.Random, count: int) -> list[str]:
    """Replies in the policy's form: a step with a box, a statement, and a letter, which any question may have."""
    letters = [rng.choice("AB") for _ in range(count)]
    step = "The first thing is at <bbox>[10,40,110,240]</bbox>."
    return [f"<think>{step}\nSo the answer is {letter}.</think><answer>{letter}</answer>" for letter in letters]


def warm(model: Any, processor: Any, prompts: Sequence[str], steps: int, seed: int, rate: float = 3e-3) -> list[float]:
    """Teach `replies` after these prompts, with up to two images of noise before them; returns each step's loss in nats per token.

    Only the language model's layers and the output rows of the replies' tokens are trained. All other rows count as one
    constant: untrained, their logits are near 0, so the log of the sum of their exponentials is near the log of their number.
    """
    import torch

    model.model.visual.requires_grad_(False)
    rng, tokenizer = random.Random(seed), processor.tokenizer
    known = sorted({i for reply in replies(rng, 200) for i in tokenizer(f"{reply}<|im_end|>")["input_ids"]})
    place = {token: row for row, token in enumerate(known)}
    head = torch.nn.Parameter(model.lm_head.weight.detach()[known].clone())
    rest = torch.tensor(math.log(model.lm_head.weight.shape[0] - len(known)))
    layers = [*model.model.language_model.layers.parameters(), *model.model.language_model.norm.parameters()]
    optimizer = torch.optim.AdamW([*layers, head], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # or single tokens go astray at the end
    losses: list[float] = []
    for step in range(steps):
        images = [_noise(rng) for _ in range(step % 3)]
        given = processor(
            text=[loading.render_prompt(processor, images, rng.choice(prompts))],
            images=images or None,
            return_tensors="pt",
        )
        rows = [tokenizer(f"{reply}<|im_end|>")["input_ids"] for reply in replies(rng, 4)]
        longest = max(map(len, rows))
        answers = torch.tensor([[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in rows])
        targets = torch.tensor([[*[place[i] for i in row], *[-100] * (longest - len(row))] for row in rows])
        ids = torch.cat([given["input_ids"].expand(len(rows), -1), answers], dim=1)
        seen: dict[str, Any] = {}
        if images:
            seen = {key: given[key].repeat(len(rows), 1) for key in ("pixel_values", "image_grid_thw")}
            seen["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
        hidden = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).last_hidden_state
        logits = hidden[:, given["input_ids"].shape[1] - 1 : -1] @ head.T
        logits = torch.cat([logits, rest.expand(*logits.shape[:2], 1)], dim=-1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        model.lm_head.weight[known] = head
    return losses


def _noise(rng: random.Random) -> Image.Image:
    """An image of 84 to 336 px a side: what an untrained tower makes of it is as good as of a photograph."""
    size = rng.choice((84, 168, 336)), rng.choice((84, 168, 336))
    return Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))


def save(model: Any, folder: Path) -> None:
    """Write the weights in bfloat16 and several files, as the hub has them, beside the small files of the hub's layout."""
    import torch
    from safetensors.torch import save_file

    tensors = {hub_name(name): tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(tensors)
    head = [name for name in names if name == "lm_head.weight"]
    parts = [[name for name in names if name not in head], head]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    document = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def hub_name(name: str) -> str:
    """A parameter's name in the hub's files: `visual.*` and `model.*`, without the module that transformers added later."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)
