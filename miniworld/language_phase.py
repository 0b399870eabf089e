"""The language phases of the mini backbone: direct answers first, then reasoning that answers follow.

Besides the usual cross entropy there is a word-region alignment loss. It trains two attention heads of the first layer to attend
from each colour word to the image token that contains the thing of that colour. Without it the model stayed at chance for as
long as we trained; with it direct answers are learned in minutes on one core.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from miniworld import fast
from miniworld.curriculum import Lesson, LessonSampler, features_for
from miniworld.recipe import LanguageStage

ALIGNED_HEADS = 2


def alignment_loss(model: Any, batch: fast.Batch, embeds_BNH: torch.Tensor, lessons: Sequence[Lesson]) -> torch.Tensor:
    """Cross entropy between the first layer's attention from colour words and the image tokens of the named things."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

    language = model.model.language_model
    layer = language.layers[0]
    attention, width = layer.self_attn, ALIGNED_HEADS * layer.self_attn.head_dim
    x = layer.input_layernorm(embeds_BNH)
    cos, sin = language.rotary_emb(x, batch.positions_3BN)

    def heads(projection: Any) -> torch.Tensor:
        y = torch.nn.functional.linear(x, projection.weight[:width], projection.bias[:width])
        return y.view(*y.shape[:2], ALIGNED_HEADS, -1).transpose(1, 2)

    q, k = apply_rotary_pos_emb(heads(attention.q_proj), heads(attention.k_proj), cos, sin)
    sources = [(row, token) for row, lesson in enumerate(lessons) for token, _ in lesson.attention_targets]
    rows, tokens = (torch.tensor(column) for column in zip(*sources, strict=True))
    scores = torch.einsum("lhd,lhnd->lhn", q[rows, :, tokens], k[rows]) * attention.scaling
    is_later = torch.arange(scores.shape[-1]) > tokens[:, None]
    scores = scores.masked_fill(is_later[:, None], -1e9)
    is_target = torch.zeros(len(sources), scores.shape[-1], dtype=torch.bool)
    for i, targets in enumerate(targets for lesson in lessons for _, targets in lesson.attention_targets):
        is_target[i, list(targets)] = True
    target_score = scores.masked_fill(~is_target[:, None], -1e9).logsumexp(-1)
    return (scores.logsumexp(-1) - target_score).mean()


def _loss(
    model: Any, sampler: LessonSampler, lessons: Sequence[Lesson], align: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Language loss and alignment loss of some lessons."""
    batch = fast.Batch(sampler.codec, [lesson.ids for lesson in lessons], [lesson.labels for lesson in lessons])
    embeds = fast.embed(model, batch, features_for(sampler.pool, lessons))
    language = fast.language_loss(model, batch, embeds)
    aligned = alignment_loss(model, batch, embeds, lessons) if align else torch.zeros(())
    return language, aligned


def step(model: Any, sampler: LessonSampler, stage: LanguageStage, number: int, rng: random.Random) -> dict[str, float]:
    """Forward and backward pass of one step. The gradients stay in the parameters; returns the losses."""
    mix = stage.mix_at(number)
    lessons = [sampler.direct(rng, mix, stage.turns) for _ in range(stage.pictures)]
    lessons += [sampler.locating(rng, stage.reasoned) for _ in range(stage.look)]
    language, aligned = _loss(model, sampler, lessons, stage.align)
    (language + stage.align * aligned).backward()
    losses = {"direct": language.item(), "align": aligned.item()}
    if number < stage.text_from:
        return losses
    for name, count, weight in (
        ("derive", stage.derive, stage.derive_weight),
        ("form", stage.form, stage.form_weight),
    ):
        derive = name == "derive"
        texts = [sampler.reasoning(rng, stage.reasoned, stage.unrelated_picture, derive) for _ in range(count)]
        loss, _ = _loss(model, sampler, texts, 0.0)
        (weight * loss).backward()
        losses[name] = loss.item()
    return losses
