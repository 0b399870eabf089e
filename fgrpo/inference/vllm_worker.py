"""Part of a vLLM worker on CPU whose weights will be replaced: its linear layers stay plain.

vLLM's CPU backend packs each linear layer when it loads it and computes with the packed copy. vLLM 0.31 packs again when it
reloads weights, but not an output layer tied to the embeddings: that one keeps the old weights, silently. If a
model is loaded inside `plain_linears`, nothing is packed, and every layer computes with the tensor that is replaced. In a
server, `fgrpo.inference.vllm_extension` does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "dispatch_cpu_unquantized_gemm"
EXTENSION = "fgrpo.inference.vllm_extension.PlainLinears"


def leave_plain(layer: Any, remove_weight: bool) -> None:
    """Replaces vLLM's packing of a linear layer."""
    layer.cpu_linear = torch.nn.functional.linear


def packed(model: torch.nn.Module) -> list[str]:
    """Names of the layers that compute with a packed copy of their weight."""
    plain = torch.nn.functional.linear
    return [name for name, module in model.named_modules() if getattr(module, "cpu_linear", plain) is not plain]


@contextmanager
def plain_linears() -> Iterator[None]:
    """Inside, models are loaded so that they compute with their weights themselves; check with `packed`."""
    from vllm.model_executor.layers import utils

    original = getattr(utils, NAME)
    setattr(utils, NAME, leave_plain)
    try:
        yield
    finally:
        setattr(utils, NAME, original)
