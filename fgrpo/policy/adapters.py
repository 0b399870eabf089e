"""Low-rank adapters (peft) on a policy: their layers, and the merged model.

A stage that trains adapters writes a merged model as its `final`. So whatever reads the model (the next stage, evaluation, a
vLLM server) needs no support for adapters. The adapters themselves are in `final/adapter`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgrpo.policy.backbone import Backbone
from fgrpo.schema_base import Lora

FOLDER = "adapter"


def lora_config(lora: Lora | None, family: Backbone) -> Any:
    """peft's configuration for adapters on `family.lora_targets`; None for full fine-tuning."""
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=family.lora_targets,
        task_type="CAUSAL_LM",
    )


def is_adapted(model: Any) -> bool:
    """Whether `model` is a base model with peft adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a peft model under its base model's names, with each adapter's product added to a copy."""
    layers = dict(model.named_modules())
    for name, tensor in model.named_parameters():
        base_name = (
            name.removeprefix("base_model.model.").replace(".base_layer", "").replace("modules_to_save.default.", "")
        )
        if model.prefix in name or "original_module" in name:
            continue
        layer = layers.get(name.rsplit(".base_layer.", 1)[0]) if name.endswith(".base_layer.weight") else None
        if layer is not None:
            deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
            yield base_name, sum(deltas, tensor.data)
        else:
            yield base_name, tensor.data


def save_merged(trainer: Any, folder: Path) -> None:
    """Write the merged model of a trainer's base model and adapters to `folder`, and the adapters to its sub-folder.

    Every process must call it; the main process writes. The trainer's own weights stay unchanged.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with _gathered(trainer, model), torch.no_grad():
        if trainer.args.should_save:
            model.save_pretrained(str(folder / FOLDER))
            state = {name: tensor.detach().cpu().clone() for name, tensor in merged(model)}
            model.get_base_model().save_pretrained(str(folder), state_dict=state)
            trainer.processing_class.save_pretrained(str(folder))
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _gathered(trainer: Any, model: Any) -> Iterator[None]:
    """Gather full parameters where ZeRO-3 shards them over the processes."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        yield
