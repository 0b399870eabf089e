"""What the checks train: a model of a published shape with random weights, its processor, questions and traces.

The tokenizer is Qwen's where it can be had (as `make rehearsal-paper` gets it); else the miniature world's, whose words are
single bytes for most texts, below an output layer of the shape's rows. Nothing is downloaded unless npm is there.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.policy import backbone
from fgrpo.types import Sample
from miniworld import tokenizer as miniature
from ops import memory_estimate
from perf.gpu.setting import SEED, SHAPE_FILES, Setting
from scripts.rehearsal_paper import downloads
from scripts.rehearsal_paper import stand_in as rehearsed
from scripts.rehearsal_paper import tokenizer as qwen

DOWNLOADS = Path("runs/rehearsal-paper/.downloads")  # shared with the rehearsal
DONE = "done"
_TINY_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 640,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}  # fmt: skip
_TINY_VISION = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}  # fmt: skip
_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
_THINGS = ("red cup", "tall tree", "white coat", "front wheel", "black helmet", "open door")


def model(setting: Setting, size: str) -> Path:
    """The folder of the model "3b" or "7b", built if it is not there.

    Raises:
        UserError: a tokenizer folder was named that does not hold Qwen's.
    """
    folder = setting.model(size)
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(setting, folder)
    ids = rehearsed.special_ids(folder)
    rehearsed.save_small_files(folder, rehearsed.Shapes(), ids)  # config.json follows with the weights
    described = description(setting, size, ids)
    described["text_config"]["vocab_size"] = max(described["text_config"]["vocab_size"], rows_of(folder))
    family = backbone.lookup(described["model_type"])
    config = family.config_class()(**described)
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if setting.device == "cuda" else torch.float32)
    try:
        with torch.device(setting.device):
            built = family.model_class()(config)
    finally:
        torch.set_default_dtype(before)
    built.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    built.generation_config.pad_token_id = ids["<|endoftext|>"]
    built.save_pretrained(folder)
    (folder / DONE).touch()
    return folder


def description(setting: Setting, size: str, ids: dict[str, int]) -> dict[str, Any]:
    """The configuration of a shape of configs/shapes, with the ids of this tokenizer; "tiny" has fewer and smaller layers."""
    described = memory_estimate.configuration(SHAPE_FILES[size])
    text, vision = dict(described["text_config"]), dict(described["vision_config"])
    if setting.shape == "tiny":
        text |= _TINY_TEXT
        vision |= _TINY_VISION
    text |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    own = {key: ids[token] for key, token in _IDS.items()}
    return {**described, **own, "text_config": text, "vision_config": vision}


def rows_of(folder: Path) -> int:
    """Rows of an output layer that has all tokens of the tokenizer in `folder`."""
    return 1 + max(max(rehearsed.special_ids(folder).values()), _entries(folder) - 1)


def _entries(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])


def has_real_tokenizer(folder: Path) -> bool:
    """Whether the model in `folder` has Qwen's tokenizer."""
    return _entries(folder) == qwen.ENTRIES


def _save_tokenizer(setting: Setting, folder: Path) -> None:
    if setting.tokenizer is not None:
        qwen.save(setting.tokenizer, folder)
        return
    try:
        if setting.shape == "tiny":
            raise UserError("a tiny model has the miniature world's")
        qwen.save(downloads.tokenizer_folder(DOWNLOADS), folder)
    except UserError as reason:
        print(f"the miniature world's tokenizer is used: {reason}", file=sys.stderr)
        miniature.save(folder)


def data(setting: Setting) -> Path:
    """rl.jsonl and sft.jsonl with images of the setting's sizes; returns their folder. Written if they are not there."""
    folder = setting.questions.parent
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng, samples, records = random.Random(SEED), [], []
    for n in range(setting.sizes.questions):
        width, height = setting.sizes.images[n % len(setting.sizes.images)]
        image = folder / f"{n}.jpg"
        noise(n, width, height).save(image, quality=90)
        one, two = rng.sample(_THINGS, 2)
        question = f"Is the {one} left or right of the {two}?"
        samples.append(
            Sample(f"sat/train/{n}", (str(image),), question, ("left", "right"), rng.choice(("left", "right")))
        )
        trace = f"<think>{' '.join(_steps(rng, setting.sizes.response))}</think><answer>{samples[-1].answer}</answer>"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": trace}]
        records.append({"id": f"{n}", "sample_id": samples[-1].id, "messages": messages, "images": [str(image)]})
    write_jsonl(setting.questions, [sample.to_dict() for sample in samples])
    write_jsonl(setting.traces, records)
    (folder / DONE).touch()
    return folder


def _steps(rng: random.Random, tokens: int) -> list[str]:
    """Words of a trace of about so many tokens, boxes among them."""
    out: list[str] = []
    while len(out) < max(tokens // 3, 4):
        x, y = rng.randrange(100), rng.randrange(100)
        out += f"The {rng.choice(_THINGS)} is at <bbox>[{x},{y},{x + 100},{y + 90}]</bbox>.".split()
    return out


def noise(seed: int, width: int, height: int) -> Image.Image:
    """A picture of soft spots, which compresses about as a photograph does."""
    small = np.random.default_rng(seed).integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
