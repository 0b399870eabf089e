"""Log-prob passes on random text at the plan's lengths: tokens per second and memory of each form of rows, and their agreement."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import is_flash_attn_2_available
from trl.trainer.utils import add_fused_lm_head

from fgrpo.policy import loading
from perf import shared_prefix
from perf.gpu import stand_in
from perf.gpu.result import Result
from perf.gpu.setting import Setting
from perf.shared_prefix import FORMS, Passes, Shape
from rl.passes import Rows
from rl.preflight import TOLERANCE

TRUE = Shape("3B", "", 900, 350, 2, 5, 5)
TINY = Shape("tiny", "", 12, 8, 2, 3, 3)
REPEATS = 2
FASTER = 1.2  # shared rows against padded rows on a GPU; tokens alone would give more than 2


def check(setting: Setting, result: Result) -> None:
    """Old pass (that of the reference costs the same) and update pass of every form under every attention."""
    folder, shape = stand_in.model(setting, "3b"), TRUE if setting.shape == "true" else TINY
    precision = setting.precision
    speeds: dict[tuple[str, Rows], float] = {}
    reference: torch.Tensor | None = None
    worst = 0.0
    for attention in attentions(setting):
        model, _ = loading.load_policy(folder, precision, attention)
        model.to(setting.device)
        loading.freeze_vision(model, projector=True)
        model.gradient_checkpointing_enable()
        model.train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        for rows, words in FORMS.items():
            old_s, update_s, logps = timed(setting, model, rows, shape)
            real = int(shared_prefix.batch(shape)[1].sum())
            result.speeds[f"old pass, {words}, {attention}"] = real / old_s
            result.speeds[f"update pass, {words}, {attention}"] = speeds[attention, rows] = real / update_s
            reference = logps if reference is None else reference
            worst = max(
                worst,
                float((logps - reference).abs().sum() / shared_prefix.batch(shape)[1][:, -logps.shape[1] :].sum()),
            )
        del model
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    result.must(
        worst <= TOLERANCE[precision],
        f"forms and attentions differ by {worst:.2g} per token (allowed {TOLERANCE[precision]:g})",
    )
    for attention in attentions(setting):
        gain = speeds[attention, "shared"] / speeds[attention, "trl"]
        result.must(setting.device == "cpu" or gain > FASTER, f"shared prompts {gain:.2f} times as fast ({attention})")


def attentions(setting: Setting) -> list[str]:
    """sdpa, and flash attention on a GPU that has it."""
    flash = setting.device == "cuda" and is_flash_attn_2_available()
    return [*(["flash_attention_2"] if flash else []), "sdpa"]


def timed(setting: Setting, model: Any, rows: Rows, shape: Shape) -> tuple[float, float, torch.Tensor]:
    """(seconds of a pass without gradients, of a pass with its backward pass, log-probabilities (B, T)); the best of `REPEATS`."""
    ids, mask, kept = (
        part.to(setting.device) if isinstance(part, torch.Tensor) else part for part in shared_prefix.batch(shape)
    )
    passes = Passes(model, rows)
    passes.accelerator = Accelerator(cpu=setting.device == "cpu")
    known = mask[:, -kept:]

    def run(size: slice) -> torch.Tensor:
        logps, _, _ = passes._get_per_token_logps_and_entropies(
            model, ids[size], mask[size], kept, compute_entropy=True
        )
        return logps * known[size]

    pieces = [slice(at, at + shape.micro_batch) for at in range(0, len(ids), shape.micro_batch)]
    old, update = [], []
    for _ in range(REPEATS):
        began = _now(setting)
        with torch.no_grad():
            found = torch.cat([run(piece) for piece in pieces])
        old.append(_now(setting) - began)
        began = _now(setting)
        for piece in pieces:
            run(piece).sum().backward()
        model.zero_grad(set_to_none=True)
        update.append(_now(setting) - began)
    return min(old), min(update), found.float().cpu()


def _now(setting: Setting) -> float:
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
