"""Attention rows of a few tokens, read while the policy runs under sdpa, flash attention or eager attention.

The tap stands in transformers' registry of attention functions under the name that is there already, so the library builds the
same masks. It sees the final queries and keys of chosen layers of one model and reduces the rows of chosen tokens to a few
numbers per head; a T x T matrix never exists. All other calls (other layers, the vision tower, a reference model) pass through.

    with AttentionTap(model, layers) as tap:
        with tap.read(rows) as reading:
            model(**inputs)
    share = reading.passes[0][layer][row].evidence_share      # (heads, queries)

- `rows`: one `Rows` per row of the batch, or a function that makes them from the keyword arguments of each forward pass of the
  model (for callers that do not start the passes themselves; one entry of `reading.passes` per pass).
- Columns are those of the rows that the model gets, padding included. Which keys a token sees is read from the mask of that pass:
  padded rows of any side, and rows that share their prompt (`fgrpo.training.shared_prefix`), whose columns its `Layout` knows.
- Under gradient checkpointing (not reentrant) a layer runs twice. A reading keeps what the first run left, and the tap must stay
  open until after `backward`, or the second run saves other tensors.
- Activations only: nothing to gather under ZeRO-3, and nothing to change for adapters.

Sources: the choice of rows and their reduction are ours, for signals in the style of Faithful-MR1 (docs/mr1.md).
Shapes: H heads, Q queries, L keys, I image keys.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.policy import backbone

KNOWN = ("sdpa", "flash_attention_2", "flash_attention_3", "eager")
REENTRANT = (
    "attention read under reentrant gradient checkpointing has no gradient; set gradient_checkpointing_kwargs="
    "{'use_reentrant': False}, or leave gradient checkpointing out"
)
ARGUMENT = "attention_tap"  # of the language model, and through it of the attention function
Layers = Literal["two_thirds", "last_third", "all"] | Sequence[int]


@dataclass(frozen=True)
class Rows:
    """What is read of one row of the batch.

    Attributes:
        queries: columns (Q,) of the tokens whose attention is read.
        image: columns (I,) of image tokens.
        evidence: columns of the image tokens that count as evidence, a part of `image`; may be empty.
    """

    queries: Tensor
    image: Tensor
    evidence: Tensor


@dataclass(frozen=True)
class Sums:
    """Logarithms of sums of exp(attention logit), (H, Q), over all keys that a token sees, its image keys and its evidence.

    Attributes:
        image_HQI: log-probabilities over the image keys alone (renormalised), None unless asked for.
    """

    every_HQ: Tensor
    image_HQ: Tensor
    evidence_HQ: Tensor
    image_HQI: Tensor | None = None

    @property
    def image_share(self) -> Tensor:
        """(H, Q) share of a token's attention that lies on the image keys."""
        return (self.image_HQ - self.every_HQ).exp()

    @property
    def evidence_share(self) -> Tensor:
        """(H, Q) share of its attention on the image that lies in the evidence; NaN for a token that sees no image key."""
        return (self.evidence_HQ - self.image_HQ).exp()


@dataclass
class Reading:
    """What `AttentionTap.read` read: per forward pass {layer: sums of each row of the batch}."""

    rows: Sequence[Rows] | Callable[[Mapping[str, Any]], Sequence[Rows]]
    keep_image: bool = False
    passes: list[dict[int, list[Sums]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """One forward pass, an argument of its layers: so a layer that is computed again finds the same rows."""

    rows: Sequence[Rows]
    keep_image: bool
    has_gradient: bool  # at the language model; a layer under reentrant checkpointing first runs without
    found: dict[int, list[Sums]]


class AttentionTap:
    """Reads attention of `layers` of `model` while it is open; see the module's docstring.

    Args:
        model: of a known family, without wrappers.
        layers: numbers of layers (`chosen_layers`).
        gradient: whether what is read carries gradients.

    Raises:
        UserError: on opening: an attention implementation that is not known, a layer without attention rows, torch.compile, or
            reentrant gradient checkpointing with `gradient`. While reading: rows that the tap cannot read, named.
    """

    def __init__(self, model: Any, layers: Sequence[int], *, gradient: bool = False) -> None:
        self.model, self.gradient = model, gradient
        self.layers = tuple(chosen_layers(model.config.get_text_config(), layers))
        self.language: Any = getattr(model.model, backbone.of_model(model).language)
        check(model, self.language, gradient)
        by_number = {
            m.layer_idx: m for m in self.language.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")
        }
        self._attention = {by_number[layer]: layer for layer in self.layers}
        self._reading: Reading | None = None
        self._inputs: Mapping[str, Any] = {}
        self._open = contextlib.ExitStack()
        self.is_open = False

    def __enter__(self) -> AttentionTap:
        self._open.enter_context(_in_place_of(self.model.config.get_text_config()._attn_implementation, self._attend))
        for module, hook in ((self.model, self._remember), (self.language, self._attach)):
            self._open.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        self.is_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open = False
        self._open.close()

    @contextlib.contextmanager
    def read(
        self, rows: Sequence[Rows] | Callable[[Mapping[str, Any]], Sequence[Rows]], *, keep_image: bool = False
    ) -> Iterator[Reading]:
        """Read the forward passes inside the block. `keep_image` also keeps each row over the image keys.

        Raises:
            ValueError: the tap is not open.
        """
        if not self.is_open:
            raise ValueError("the attention tap is not open; read inside `with tap:`")
        self._reading = Reading(rows, keep_image)
        try:
            yield self._reading
        finally:
            self._reading = None

    def _remember(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        self._inputs = given

    def _attach(self, _: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Give the language model, and with it each layer, the rows of this pass."""
        reading = self._reading
        if reading is None:
            return None
        positions = given.get("position_ids")
        if positions is not None and positions.ndim == 3 and len(positions) == 4:
            raise UserError(
                "attention cannot be read of packed sequences (position_ids with four rows); pass padded rows, or rows that "
                "share a prompt"
            )
        rows = reading.rows(self._inputs) if callable(reading.rows) else reading.rows
        reading.passes.append({})
        return args, {**given, ARGUMENT: _Pass(rows, reading.keep_image, torch.is_grad_enabled(), reading.passes[-1])}

    def _attend(self, original: Any, module: Any, *args: Any, **more: Any) -> Any:
        """`original`, the attention function in whose place the tap stands, after the rows have been read."""
        layer = self._attention.get(module)
        one: _Pass | None = more.pop(ARGUMENT, None) if layer is not None else None
        if one is not None and layer is not None:
            query, key, _, mask = args
            _refuse(query, key, mask, more)
            if self.gradient and one.has_gradient and not torch.is_grad_enabled():
                raise UserError(REENTRANT)
            if query.shape[0] != len(one.rows):
                raise ValueError(f"rows to read are given for {len(one.rows)} rows, and the pass has {query.shape[0]}")
            with contextlib.nullcontext() if self.gradient else torch.no_grad():
                scale = more.get("scaling") or module.scaling
                sums = [_sums(query, key, mask, b, rows, scale, one.keep_image) for b, rows in enumerate(one.rows)]
            one.found.setdefault(layer, sums)
        return original(module, *args, **more)


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


def check(model: Any, language: Any, gradient: bool) -> None:
    """Refuse a model whose attention cannot be read, before its first pass.

    Args:
        model: without wrappers.
        language: its language model.
        gradient: whether gradients are wanted.

    Raises:
        UserError: what is in the way, and what to do.
    """
    name = model.config.get_text_config()._attn_implementation
    if name not in KNOWN:
        raise UserError(f"attention of the implementation {name!r} cannot be read; use one of {', '.join(KNOWN)}")
    if any(getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod") for m in model.modules()):
        raise UserError("attention of a compiled model cannot be read; leave torch.compile out")
    layer = next((m for m in language.modules() if getattr(m, "gradient_checkpointing", False)), None)
    function = getattr(layer, "_gradient_checkpointing_func", None)
    if gradient and function is not None and getattr(function, "keywords", {}).get("use_reentrant", True):
        raise UserError(REENTRANT)


def _refuse(query: Tensor, key: Tensor, mask: Any, more: Mapping[str, Any]) -> None:
    if torch.compiler.is_compiling():
        raise UserError("attention of a compiled model cannot be read; leave torch.compile out")
    if more.get("cu_seq_lens_q") is not None:
        raise UserError("attention cannot be read of packed sequences (cu_seq_lens_q); pass padded rows")
    if more.get("sliding_window") is not None or more.get("softcap") is not None:
        raise UserError("attention with a sliding window or a soft cap cannot be read")
    if query.shape[2] != key.shape[2]:
        raise UserError("attention is read of whole rows, not of steps of generation with a cache")


def _sums(query: Tensor, key: Tensor, mask: Any, b: int, rows: Rows, scale: float, keep_image: bool) -> Sums:
    """The reduced attention rows of row `b`; query (B, H, L, D) and key (B, groups, L, D) have their rotary positions."""
    q_HQD, k_GLD = query[b][:, rows.queries].float(), key[b].float()
    heads, queries, size = q_HQD.shape
    grouped = q_HQD.reshape(len(k_GLD), heads // len(k_GLD) * queries, size)  # the heads of one key head are adjacent
    logits_HQL = (torch.matmul(grouped, k_GLD.mT) * scale).view(heads, queries, -1)
    logits_HQL = logits_HQL.masked_fill(~_visible(mask, b, rows.queries, logits_HQL.shape[-1]), -torch.inf)
    image_HQI = logits_HQL[..., rows.image]
    image_HQ = image_HQI.logsumexp(-1)
    return Sums(
        logits_HQL.logsumexp(-1),
        image_HQ,
        logits_HQL[..., rows.evidence].logsumexp(-1),
        image_HQI - image_HQ[..., None] if keep_image else None,
    )


def _visible(mask: Any, b: int, queries: Tensor, length: int) -> Tensor:
    """(Q, L): the keys that each query of row `b` attends to, by the mask that the attention function gets."""
    if hasattr(mask, "visible"):  # `fgrpo.training.branch_attention.Sequences`
        visible: Tensor = mask.visible(queries, length)
        return visible
    if isinstance(mask, Tensor) and mask.ndim == 4:  # sdpa, eager: (B or 1, 1, L, L), true or 0 where attended to
        given = mask[b if len(mask) > 1 else 0, 0][queries, :length]
        return given if given.dtype == torch.bool else given == 0
    causal = torch.arange(length, device=queries.device)[None, :] <= queries[:, None]
    return causal if mask is None else causal & mask[b].bool()[None, :length]  # flash attention: (B, L)


@contextlib.contextmanager
def _in_place_of(name: str, attend: Callable[..., Any]) -> Iterator[None]:
    """Put `attend` into transformers' registry under the existing `name`, and take it out again."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)

    def wrapper(module: Any, *args: Any, **more: Any) -> Any:
        if before is not None:
            original = before
        elif name == "eager":  # not in the registry: each modelling file has its own
            original = sys.modules[type(module).__module__].eager_attention_forward
        else:  # looked up now, as `fgrpo.training.branch_attention` may register its own later
            original = AttentionInterface._global_mapping[name]
        return attend(original, module, *args, **more)

    ALL_ATTENTION_FUNCTIONS[name] = wrapper
    try:
        yield
    finally:
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before
