"""The mini backbone's forward pass with precomputed image features, for training and measuring the backbone.

While the vision tower is frozen, its output for an image never changes, so it is computed once and the language model is called
directly. The results equal those of Qwen2_5_VLForConditionalGeneration.forward on the processor's output (a test compares
them). This saves the vision tower, its Conv3d, which is slow on CPUs, and the attention loop over images.

Shapes: B sequences, N tokens, M images, P = 64 patches and K = 16 image tokens per image, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from miniworld import backbone_model as bm
from miniworld import tokenizer as tok
from miniworld.scene import PIXELS

GRID = PIXELS // bm.PATCH  # patches per side
SIDE = GRID // bm.MERGE  # image tokens per side
IMAGE_TOKENS = SIDE * SIDE
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of Qwen2VLImageProcessor
_STD = (0.26862954, 0.26130258, 0.27577711)

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
IMAGE_BLOCK = tok.VISION_START + tok.IMAGE * IMAGE_TOKENS + tok.VISION_END
TO_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
TO_USER = "\n<|im_start|>user\n"


class Codec:
    """Text to token ids and back, with a cache for recurring texts.

    Args:
        focus: id of the token that the checkpoint's template writes at the end of a user turn (`fgrpo.policy.focus`), if it does.
    """

    def __init__(self, focus: int | None = None) -> None:
        self.turn_end = () if focus is None else (focus,)
        self.tokenizer = tok.build()
        self.encode = lru_cache(maxsize=100_000)(self._encode)
        self.special = tuple(tok.token_id(self.tokenizer, t) for t in tok.SPECIAL)
        self.image = tok.token_id(self.tokenizer, tok.IMAGE)
        self.end = tok.token_id(self.tokenizer, tok.END)
        self.pad = tok.token_id(self.tokenizer, tok.PAD)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt(self, question: str, image_count: int) -> list[int]:
        """The processor's ids of one user turn with `image_count` images before its text."""
        before, after = self.encode(SYSTEM + IMAGE_BLOCK * image_count), self.encode(TO_ASSISTANT)
        return [*before, *self.encode(question), *self.turn_end, *after]


def pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Patches of 112-px images in Qwen2VLImageProcessor's layout: (M, P, 3 * 2 * 14 * 14) float32."""
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    array = (array - np.asarray(_MEAN, np.float32)) / np.asarray(_STD, np.float32)
    x = torch.from_numpy(array).permute(0, 3, 1, 2).reshape(-1, 3, SIDE, bm.MERGE, bm.PATCH, SIDE, bm.MERGE, bm.PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return x.reshape(len(images), GRID * GRID, -1).contiguous()


def _vision_attention(attention: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Qwen2_5_VLVisionAttention on (M, P, H), for each image separately."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    count, patches, width = x.shape
    q, k, v = attention.qkv(x).reshape(count * patches, 3, attention.num_heads, -1).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, cos.repeat(count, 1), sin.repeat(count, 1))
    q, k, v = (t.reshape(count, patches, attention.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, patches, width)
    return attention.proj(out)


def image_features(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Image tokens (M, K, H) of images given as `pixel_values`; equals `visual(...).pooler_output`."""
    weight = visual.patch_embed.proj.weight
    x = F.linear(pixels, weight.reshape(weight.shape[0], -1))
    cos, sin = visual.rotary_pos_emb(x, patch_positions())
    for block in visual.blocks:
        x = x + _vision_attention(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.reshape(-1, x.shape[-1])).reshape(len(pixels), IMAGE_TOKENS, -1)


@lru_cache(maxsize=1)
def patch_positions() -> torch.Tensor:
    """Row and column of each patch of one image, in the tower's order."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    grid = torch.tensor([[1, GRID, GRID]])
    return modeling.get_vision_position_ids(grid, bm.MERGE, kwargs={})


@torch.no_grad()
def features_of(visual: Any, images: Sequence[Image.Image], batch: int = 256) -> torch.Tensor:
    """Image tokens (M, K, H) of many images, without gradient."""
    parts = [image_features(visual, pixel_values(images[i : i + batch])) for i in range(0, len(images), batch)]
    return torch.cat(parts)


@lru_cache(maxsize=64)
def _positions(starts: tuple[int, ...], length: int) -> torch.Tensor:
    """mRoPE positions (3, length) of a sequence whose image tokens start at `starts`."""
    out = torch.empty(3, length, dtype=torch.long)
    at = position = 0
    for start in (*starts, length):
        text = torch.arange(position, position + start - at)
        out[:, at:start] = text
        position += start - at
        if start == length:
            break
        rows = torch.arange(SIDE).repeat_interleave(SIDE) + position
        columns = torch.arange(SIDE).repeat(SIDE) + position
        out[:, start : start + IMAGE_TOKENS] = torch.stack([torch.full((IMAGE_TOKENS,), position), rows, columns])
        at, position = start + IMAGE_TOKENS, position + SIDE
    return out


def positions(ids: Sequence[int], image_id: int) -> torch.Tensor:
    """mRoPE positions (3, N) of one sequence, equal to those of Qwen2_5_VLModel.get_rope_index."""
    starts, at = [], 0
    while image_id in ids[at:]:
        at = ids.index(image_id, at)
        starts.append(at)
        at += IMAGE_TOKENS
    return _positions(tuple(starts), 1024)[:, : len(ids)]


class Batch:
    """Sequences padded to one length: ids, labels (-100 = no loss) and mask (B, N), positions (3, B, N)."""

    def __init__(
        self, codec: Codec, ids: Sequence[list[int]], labels: Sequence[list[int]] | None = None, left: bool = False
    ) -> None:
        rows, length = len(ids), max(map(len, ids))
        self.ids_BN = torch.full((rows, length), codec.pad)
        self.labels_BN = torch.full((rows, length), -100)
        self.mask_BN = torch.zeros(rows, length, dtype=torch.long)
        self.positions_3BN = torch.zeros(3, rows, length, dtype=torch.long)
        for i, row in enumerate(ids):
            span = slice(length - len(row), length) if left else slice(0, len(row))
            self.ids_BN[i, span] = torch.tensor(row)
            self.mask_BN[i, span] = 1
            self.positions_3BN[:, i, span] = positions(row, codec.image)
            if labels is not None:
                self.labels_BN[i, span] = torch.tensor(labels[i])
        self.image_BN: torch.Tensor = self.ids_BN.eq(codec.image)


def embed(model: Any, batch: Batch, features_MKH: torch.Tensor | None) -> torch.Tensor:
    """Input embeddings (B, N, H) with the image features inserted, in order."""
    x = model.get_input_embeddings()(batch.ids_BN)
    if features_MKH is None:
        return x
    return x.masked_scatter(batch.image_BN.unsqueeze(-1), features_MKH.reshape(-1, features_MKH.shape[-1]))


def language_loss(model: Any, batch: Batch, embeds_BNH: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the labels. Right padding needs no mask, because no label attends to it."""
    hidden = model.model.language_model(
        inputs_embeds=embeds_BNH, position_ids=batch.positions_3BN, attention_mask=None, use_cache=False
    ).last_hidden_state
    labels = batch.labels_BN[:, 1:]
    has_loss = labels != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][has_loss]), labels[has_loss])


@torch.no_grad()
def generate(
    model: Any,
    codec: Codec,
    prompts: Sequence[list[int]],
    features_MKH: torch.Tensor,
    max_new: int,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """New token ids for each prompt, up to the end token; greedy without `generator`, else sampled at temperature 1.

    Special tokens other than the end token are never sampled.
    """
    from transformers import DynamicCache

    batch = Batch(codec, prompts, left=True)
    language = model.model.language_model
    cache = DynamicCache(config=model.config.text_config)
    embeds, position_ids, mask = embed(model, batch, features_MKH), batch.positions_3BN, batch.mask_BN
    next_position = position_ids.amax((0, 2)) + 1
    banned = [t for t in codec.special if t != codec.end]
    done = torch.zeros(len(prompts), dtype=torch.bool)
    out: list[torch.Tensor] = []
    for _ in range(max_new):
        hidden = language(
            inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = model.lm_head(hidden)
        logits[:, banned] = -torch.inf
        if generator is None:
            token = logits.argmax(-1)
        else:
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        token = token.masked_fill(done, codec.end)
        out.append(token)
        done |= token == codec.end
        if bool(done.all()):
            break
        embeds = model.get_input_embeddings()(token[:, None])
        position_ids, next_position = next_position.view(1, -1, 1).expand(3, -1, 1), next_position + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    rows = torch.stack(out, 1).tolist()
    return [row[: row.index(codec.end)] if codec.end in row else row for row in rows]
