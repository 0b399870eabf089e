"""The layers of a language model whose attention is read: by number, or by a name for a part of the stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fgrpo.errors import UserError

Layers = Literal["two_thirds", "last_third", "all"] | Sequence[int]


def chosen_layers(text_config: Any, layers: Layers) -> list[int]:
    """Numbers of layers, counted from 0.

    Args:
        text_config: the language model's configuration.
        layers: "two_thirds" (one layer, floor(2L/3) of L), "last_third", "all" (the last two: those with attention rows), or
            numbers.

    Raises:
        UserError: no such layer, or one without attention rows over all keys (linear or windowed attention).
    """
    count = int(text_config.num_hidden_layers)
    kinds = list(getattr(text_config, "layer_types", None) or ["full_attention"] * count)
    full = [n for n, kind in enumerate(kinds) if kind == "full_attention"]
    if layers == "all":
        chosen = full
    elif layers == "last_third":
        chosen = [n for n in full if n >= count - max(1, count // 3)]
    else:
        chosen = [2 * count // 3] if isinstance(layers, str) else list(layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} does not exist: the model has layers 0 to {count - 1}")
        if layer not in full:
            raise UserError(
                f"layer {layer} has no attention rows over the image ({kinds[layer]}); layers that have: {', '.join(map(str, full))}"
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"attention is read of at least one layer, each named once; got {list(chosen)}")
    return chosen
