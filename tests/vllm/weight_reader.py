"""What a vLLM engine computes with, told by itself, and what it should be (tests/vllm/test_rollouts.py).

A layer's matrix is what the layer makes of the unit vectors, so it is the effective one whatever is stored beside it.
"""

from __future__ import annotations

from typing import Any

import torch

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def effective(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter by vLLM's name; of linear layers and embeddings the matrix that they multiply with."""
    found = {name: tensor.detach().clone().contiguous() for name, tensor in model.named_parameters()}
    with torch.inference_mode():
        for name, layer in model.named_modules():
            apply: Any = getattr(layer, "cpu_linear", None)
            if apply is not None:
                width: int = getattr(layer, "input_size_per_partition", 0) or layer.embedding_dim
                product = apply(torch.eye(width), layer.weight, None)
                found[f"{name}.weight (applied)"] = product.T.contiguous()
    return found


def expected(name: str, trained: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the trainer has under vLLM's `name` (KeyError: nothing)."""
    name = name.removesuffix(" (applied)")
    if name == "language_model.lm_head.weight" and "lm_head.weight" not in trained:
        name = "language_model.model.embed_tokens.weight"
    for ours, theirs in (("language_model.model.", "model.language_model."), ("visual.", "model.visual.")):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    else:
        name = name.removeprefix("language_model.")
    for fused, parts in FUSED.items():
        if f".{fused}." in name and name not in trained:
            return torch.cat([trained[name.replace(fused, part)] for part in parts])
    return trained[name]


def differences(engine: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> list[str]:
    """Names under which the engine has another tensor than the trainer (vLLM pads vocabularies: rows beyond ours are left out)."""
    wrong = []
    for name, tensor in engine.items():
        ours = expected(name, trained)
        rows = tensor[: len(ours)] if tensor.dim() == ours.dim() else tensor.reshape(ours.shape)
        if rows.shape != ours.shape or not torch.equal(rows, ours):
            wrong.append(name)
    return wrong
