"""Memory of one GPU before a run starts: a stage's training states and activations, and the KV cache of RL's rollouts.

What a configuration asks of the formulas of `ops.memory_estimate`. "Likely" is at sequences of the assumed length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema import Config
from ops import memory_estimate
from ops.assumptions import IMAGE, Assumptions, with_pixels
from ops.memory_estimate import GB, Part, Shape
from ops.training_stages import Stage, likely_lengths, processes, prompts_per_pass, section

BYTES = {"fp32": 4, "bf16": 2}  # per weight
ANCHORING = "anchoring"  # the auxiliary loss of rl/auxiliary with a pass over prompts


def trained_parameters(config: Config, stage: Stage, shape: Shape) -> int:
    """Parameters that a stage trains; with LoRA, the adapters alone."""
    own = section(config, stage)
    if own.lora is not None:
        return shape.adapters(own.lora)
    return shape.trainable(freeze_vision=own.freeze_vision, freeze_projector=own.freeze_projector)


def memory(
    config: Config,
    stage: Stage,
    shape: Shape,
    length: int,
    reply: int,
    prompt: int | None = None,
    pixels: Sequence[Part] = (),
) -> list[Part]:
    """Memory of one GPU in a training stage at sequences of `length` tokens, `reply` of them with logits.

    Args:
        prompt: tokens of a prompt, where its length is not `length - reply`; the anchoring loss keeps a pass over it beside the other.
        pixels: what is held of images (`pixel_parts`).
    """
    own = section(config, stage)
    trainable = trained_parameters(config, stage, shape)
    half = own.precision == "bf16"
    rows = config.rl.micro_batch if stage == "rl" else config.sft.batch_size
    states = memory_estimate.states(
        shape,
        trainable,
        config.launch.machines * processes(config, stage),
        sharding(own.deepspeed),
        half=half,
        adapters=own.lora is not None,
        reference=stage == "rl" and config.rl.kl_coef > 0 and own.lora is None,
    )
    checkpointing = stage != "rl" or config.rl.gradient_checkpointing
    prompts = prompts_per_pass(config, most=True) if stage == "rl" else rows
    tokens = round(prompts * (length - reply)) + rows * reply
    if stage == "anchor" or (stage == "rl" and ANCHORING in config.rl.auxiliary):
        tokens += round(prompts * (length - reply if prompt is None else prompt))
    return [
        *states,
        *pixels,
        *memory_estimate.activations(shape, tokens, rows * reply, half=half, checkpointing=checkpointing),
    ]


def sharding(settings: str | None) -> memory_estimate.Sharding:
    """How a DeepSpeed file shards; "none" without one."""
    if settings is None:
        return "none"
    stage = json.loads(Path(settings).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    names: dict[int, memory_estimate.Sharding] = {3: "zero3", 2: "zero2"}
    return names.get(stage, "none")


def likely_memory(config: Config, stage: Stage, shape: Shape, assume: Assumptions) -> list[Part]:
    """Memory of one GPU at sequences of the assumed length."""
    assume = with_pixels(config, assume)
    prompt, reply = map(round, likely_lengths(config, stage, assume))
    length = prompt + reply
    parts = pixel_parts(config, stage, assume[IMAGE])
    return memory(config, stage, shape, length, reply if stage == "rl" else length, prompt, parts)


def rollouts_of_process(config: Config) -> float:
    """Rollouts of a generation in one training process."""
    return config.rl.rollout_batch * config.rl.group_size / (config.launch.machines * config.launch.rl_processes)


def pixel_parts(config: Config, stage: Stage, image_tokens: float | None = None) -> list[Part]:
    """What RL holds of a generation's images on a GPU.

    Args:
        image_tokens: of one rollout; None: the most that the model's bounds and rl.max_prompt_length allow.
    """
    if stage != "rl":
        return []
    bounds = pixel_bounds(config.models.base, config.policy.pixels)
    most = min(config.rl.max_prompt_length, bounds.max_pixels / bounds.factor**2)
    tokens = most if image_tokens is None else min(most, image_tokens)
    return memory_estimate.held_pixels(rollouts_of_process(config), tokens, bounds.factor)


def _limits(config: Config, stage: Stage) -> tuple[int, int]:
    """(most tokens per sequence, how many of them have logits)."""
    if stage != "rl":
        return config.sft.max_length, config.sft.max_length
    return config.rl.max_prompt_length + config.rl.max_response_length, config.rl.max_response_length


def memory_lines(config: Config, stage: Stage, shape: Shape, assume: Assumptions) -> Sequence[str]:
    """The plan's lines about the memory of one GPU: likely, at most, and the parts."""
    most, replies = _limits(config, stage)
    parts = likely_memory(config, stage, shape, assume)
    longest = memory(config, stage, shape, most, replies, _longest_prompt(config, stage), pixel_parts(config, stage))
    upper, total = memory_estimate.peak(longest), memory_estimate.peak(parts)
    room = "" if upper <= assume["gpu.memory_gb"] * GB else f", more than the GPU's {assume['gpu.memory_gb']:g}"
    return [
        f"{stage:10} {total / GB:>8.1f} GB likely, {upper / GB:.1f} GB with every sequence at its limit of {most:,} tokens{room}",
        *(f"{'':10} {part.size / GB:>8.1f} GB {_title(part)}: {part.formula}" for part in parts),
    ]


def _title(part: Part) -> str:
    return f"{part.name} ({part.phase})" if part.phase else part.name


def _longest_prompt(config: Config, stage: Stage) -> int:
    return config.rl.max_prompt_length if stage == "rl" else config.sft.max_length


def cache(config: Config, shape: Shape, assume: Assumptions) -> str:
    """One line: the KV cache of a generation of rollouts, and the room for it on a GPU of the rollout server."""
    rl, serving = config.rl, config.serve.rollouts
    number = BYTES[rl.precision]
    each = memory_estimate.cache_bytes(shape, number)
    rollouts = rl.rollout_batch * rl.group_size
    most = rollouts * (rl.max_prompt_length + rl.max_response_length)
    likely = rollouts * round(sum(likely_lengths(config, "rl", assume)))
    free = assume["gpu.memory_gb"] * GB * serving.memory_share - number * shape.parameters / serving.tensor_parallel
    return (
        f"KV cache   {each:,} bytes per token (2 x {shape.layers} layers x {shape.kv_width} wide x {number}); a generation of "
        f"{rollouts} rollouts: at most {most * each / GB:,.1f} GB, likely {likely * each / GB:,.1f} GB; a GPU of "
        f"{assume['gpu.memory_gb']:g} GB has about {max(free, 0) / GB:,.0f} GB for it next to the weights; vLLM queues the rest"
    )
