"""The language phases of the mini backbone: direct answers in bulk, then reasoning that answers follow.

Beside the usual cross entropy there is a word-region alignment loss: two attention heads of the first layer are to
look, from each colour word, at the image token in which the thing of that colour lies. Without it the model stays at
chance for as long as we had patience; with it the direct answers are learned in minutes on one core.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from miniworld import fast
from miniworld.curriculum import Lesson, Teacher, features_for
from miniworld.recipe import LanguageStage

ALIGNED_HEADS = 2


def alignment_loss(model: Any, batch: fast.Batch, embeds_BNH: torch.Tensor, lessons: Sequence[Lesson]) -> torch.Tensor:
    """Cross entropy between the first layer's attention from colour words and the image tokens they name."""
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
    where = [(row, token) for row, lesson in enumerate(lessons) for token, _ in lesson.looks]
    rows, tokens = (torch.tensor(column) for column in zip(*where, strict=True))
    scores = torch.einsum("lhd,lhnd->lhn", q[rows, :, tokens], k[rows]) * attention.scaling
    later = torch.arange(scores.shape[-1]) > tokens[:, None]
    scores = scores.masked_fill(later[:, None], -1e9)
    wanted = torch.zeros(len(where), scores.shape[-1], dtype=torch.bool)
    for i, targets in enumerate(targets for lesson in lessons for _, targets in lesson.looks):
        wanted[i, list(targets)] = True
    right = scores.masked_fill(~wanted[:, None], -1e9).logsumexp(-1)
    return (scores.logsumexp(-1) - right).mean()


def _loss(model: Any, teacher: Teacher, lessons: Sequence[Lesson], align: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Language loss and alignment loss of some lessons."""
    batch = fast.Batch(teacher.codec, [lesson.ids for lesson in lessons], [lesson.labels for lesson in lessons])
    embeds = fast.embed(model, batch, features_for(teacher.pool, lessons))
    language = fast.language_loss(model, batch, embeds)
    aligned = alignment_loss(model, batch, embeds, lessons) if align else torch.zeros(())
    return language, aligned


def step(model: Any, teacher: Teacher, stage: LanguageStage, number: int, rng: random.Random) -> dict[str, float]:
    """Forward and backward of one step; the gradients are left in the parameters. Returns the losses."""
    mix = stage.mix_at(number)
    lessons = [teacher.direct(rng, mix, stage.turns) for _ in range(stage.pictures)]
    lessons += [teacher.looking(rng, stage.reasoned) for _ in range(stage.look)]
    language, aligned = _loss(model, teacher, lessons, stage.align)
    (language + stage.align * aligned).backward()
    losses = {"direct": language.item(), "align": aligned.item()}
    if number < stage.text_from:
        return losses
    for name, count, weight in (
        ("derive", stage.derive, stage.derive_weight),
        ("form", stage.form, stage.form_weight),
    ):
        derive = name == "derive"
        texts = [teacher.reasoning(rng, stage.reasoned, stage.unrelated_picture, derive) for _ in range(count)]
        loss, _ = _loss(model, teacher, texts, 0.0)
        (weight * loss).backward()
        losses[name] = loss.item()
    return losses
