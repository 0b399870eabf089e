"""Memory of a model, estimated from its configuration alone: parameters on the meta device, bytes from formulas.

`shape_of` builds the real class without weights. The other functions are arithmetic over a `Shape` and show their formula.
Bytes are those of training with the DeepSpeed files of configs/deepspeed (ZeRO-3 shards parameters, gradients and optimizer;
ZeRO-2 keeps complete parameters), or of plain data-parallel training. Only `shape_of` imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fgrpo.policy import backbone, model_files
from fgrpo.schema_base import Lora

Sharding = Literal["zero3", "zero2", "none"]
GB = 1e9
HALF, FULL = 2, 4  # bytes of a bf16 and a float32 number
MASTER_AND_ADAM = 12  # float32 weights and Adam's two moments
ADAM = 8
SUB_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size: parameters of a shard that ZeRO-3 updates at once
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: most parameters gathered at once
PASSES, STEP, SHUFFLE = "passes", "step", "shuffle"  # phases of training, which follow one another
TILE_TOKENS, TILE_COLUMNS = 4096, 32768  # of logits that TRL's head holds at a time (its two chunk sizes)


@dataclass(frozen=True)
class Shape:
    """Sizes of a policy: parameters (all, vision encoder, projectors) and the language model's dimensions."""

    parameters: int
    encoder: int
    projector: int
    layers: int
    hidden: int
    feed_forward: int
    query_width: int  # query heads x their size
    kv_width: int  # key-value heads x their size
    vocabulary: int

    def trainable(self, *, freeze_vision: bool, freeze_projector: bool) -> int:
        """Parameters that get gradients."""
        frozen = self.encoder * freeze_vision + self.projector * (freeze_vision and freeze_projector)
        return self.parameters - frozen

    def adapters(self, lora: Lora) -> int:
        """Parameters of adapters on the language model's seven projections per layer: rank x (in + out)."""
        h, f, q, kv = self.hidden, self.feed_forward, self.query_width, self.kv_width
        return lora.rank * self.layers * (2 * (h + q) + 2 * (h + kv) + 3 * (h + f))


def configuration(model: str) -> dict[str, Any]:
    """The model's config.json, from its folder, from configs/shapes by its name, or from the hub."""
    return model_files.published(model) or model_files.check_policy(model)


def shape_of(model: str) -> Shape:
    """The shape of a policy.

    Args:
        model: a folder, a file of configs/shapes, or a name on the hub.

    Raises:
        UserError: the model does not exist, or is of another kind.
    """
    import torch

    described = configuration(model)
    family = backbone.lookup(described.get("model_type"), model)
    config: Any = family.config_class()(**described)
    with torch.device("meta"):
        built = family.model_class()(config)
    sizes: Mapping[str, int] = {name: p.numel() for name, p in built.named_parameters()}
    vision = {name: size for name, size in sizes.items() if family.is_vision(name)}
    projector = sum(size for name, size in vision.items() if family.is_projector(name))
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=sum(sizes.values()),
        encoder=sum(vision.values()) - projector,
        projector=projector,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=text.intermediate_size,
        query_width=text.num_attention_heads * head,
        kv_width=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
    )


@dataclass(frozen=True)
class Part:
    """Bytes of one kind on one GPU, and their formula. `phase`: when they are held; "": always."""

    name: str
    size: float
    formula: str
    phase: str = ""


def peak(parts: Sequence[Part]) -> float:
    """The most bytes at one time: what is always held, and the largest of the phases, which follow one another."""
    phases: dict[str, float] = {}
    for part in parts:
        phases[part.phase] = phases.get(part.phase, 0.0) + part.size
    return phases.pop("", 0.0) + max(phases.values(), default=0.0)


def states(
    shape: Shape, trainable: int, gpus: int, sharding: Sharding, *, half: bool, adapters: bool, reference: bool
) -> list[Part]:
    """Weights, gradients, optimizer and the frozen reference policy on one GPU.

    Args:
        trainable: parameters with gradients (with LoRA, the adapters alone).
        half: bf16 weights and gradients with float32 master weights; otherwise float32 throughout.
        adapters: `trainable` is added to the model's own parameters.
        reference: a second, frozen copy for the KL term.
    """
    weight = HALF if half else FULL
    optimizer = MASTER_AND_ADAM if half else ADAM
    whole = shape.parameters + (trainable if adapters else 0)
    over = 1 if sharding == "none" else gpus
    over_weights = gpus if sharding == "zero3" else 1
    parts = [
        Part("weights", weight * whole / over_weights, f"{weight} bytes x {whole:,} / {over_weights}"),
        Part("gradients", weight * trainable / over, f"{weight} bytes x {trainable:,} trained / {over}"),
        Part("optimizer", optimizer * trainable / over, f"{optimizer} bytes x {trainable:,} / {over}"),
    ]
    if reference:
        size = weight * shape.parameters / over_weights
        parts.append(Part("reference policy", size, f"{weight} bytes x {shape.parameters:,} / {over_weights}"))
    if sharding == "zero3":
        live = min(LIVE_PARAMETERS, shape.parameters)
        parts.append(
            Part("gathered parameters", weight * live, f"{weight} bytes x {live:,} at once at most (DeepSpeed)", PASSES)
        )
    if (
        half and sharding != "none"
    ):  # DeepSpeed's step copies a shard's bf16 gradients to float32; Adam's foreach form has one more
        shard = trainable / gpus
        at_once = min(shard, SUB_GROUP) if sharding == "zero3" else shard
        how = f"({FULL} of float32 gradients + {FULL} of Adam's denominators) bytes x {at_once:,.0f}"
        parts.append(Part("update", 2 * FULL * at_once, how, STEP))
    return parts


def activations(shape: Shape, tokens: int, with_logits: int, *, half: bool, checkpointing: bool) -> list[Part]:
    """Activations of one forward and backward pass over `tokens`, and the log-probabilities of `with_logits` of them.

    With checkpointing, every layer keeps its input and one layer at a time is recomputed. Blockwise attention (flash, sdpa)
    keeps no matrix of scores. A layer holds about six vectors of the hidden size, two of the queries' width, keys and values, and
    four of the feed-forward size, and the same again for their gradients.
    """
    number = HALF if half else FULL
    layer = 2 * number * (6 * shape.hidden + 2 * shape.query_width + 2 * shape.kv_width + 4 * shape.feed_forward)
    inputs = number * shape.hidden * shape.layers
    tile, columns = min(with_logits, TILE_TOKENS), min(shape.vocabulary, TILE_COLUMNS)
    held = inputs + layer if checkpointing else layer // 2 * shape.layers + layer // 2
    how = "layers' inputs and one layer" if checkpointing else "every layer"
    return [
        Part("activations", tokens * held, f"{tokens:,} tokens x {held:,} bytes ({how})", PASSES),
        Part(
            "log-probabilities",
            FULL * (tile * columns + shape.hidden * (shape.vocabulary + with_logits)),
            f"{FULL} bytes x ({tile:,} x {columns:,} of a tile + {shape.hidden:,} x ({shape.vocabulary:,} + {with_logits:,} tokens) of "
            "float32 gradients); TRL builds no logits",
            PASSES,
        ),
    ]


def held_pixels(rollouts: float, image_tokens: float, factor: int) -> list[Part]:
    """Pixel values of a process' generation: TRL holds those of every rollout until the next one, and copies them once when it shuffles."""
    each = pixel_bytes(image_tokens, factor)
    how = f"{rollouts:g} rollouts x {image_tokens:,.0f} image tokens x {factor}^2 x 6 values x {FULL} bytes"
    return [
        Part("pixel values", rollouts * each, how),
        Part("pixel values again", rollouts * each, f"{how} (TRL's shuffle)", SHUFFLE),
    ]


def pixel_bytes(image_tokens: float, factor: int) -> float:
    """Bytes of the float32 pixel values of an image: three channels, two frames, `factor`^2 pixels per image token."""
    return image_tokens * 3 * 2 * factor**2 * FULL


def checkpoints(shape: Shape, trainable: int, number: int, whole: int, *, half: bool, adapters: bool) -> Part:
    """Bytes on disk: `number` checkpoints with the optimizer's states, and `whole` models without them."""
    weight, optimizer = (HALF, MASTER_AND_ADAM) if half else (FULL, ADAM)
    saved = trainable if adapters else shape.parameters
    size = number * (weight * saved + optimizer * trainable) + whole * weight * shape.parameters
    formula = (
        f"{number} checkpoints x ({weight} bytes x {saved:,} saved + {optimizer} x {trainable:,} trained) + {whole} whole x "
        f"{weight} x {shape.parameters:,}"
    )
    return Part("checkpoints", size, formula)


def cache_bytes(shape: Shape, number: int = HALF) -> int:
    """Bytes per token in the KV cache: 2 x layers x width of keys x bytes of a number."""
    return 2 * shape.layers * shape.kv_width * number
