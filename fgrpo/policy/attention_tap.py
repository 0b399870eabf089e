"""Attention rows of a few tokens, read while the policy runs under sdpa, flash attention or eager attention.

The tap stands in transformers' registry of attention functions under the name that is there already, so the library builds the
same masks. It sees the final queries and keys of chosen layers of one model and reduces the rows of chosen tokens to a few
numbers per head, a block of rows at a time; a T x T matrix never exists. All other calls (other layers, the vision tower, a
reference model) pass through.

    with AttentionTap(model, layers) as tap:
        with tap.read(rows) as reading:
            model(**inputs)
    share = reading.passes[0][layer][row].evidence_share      # (heads, queries)

- `rows`: one `Rows` per row of the batch. `reading.passes` has one entry per forward pass in the block.
- Columns are those of the rows that the model gets, padding included. Which keys a token sees is read from the mask of that pass:
  rows padded on either side, and rows that share their prompt (`fgrpo.training.shared_prefix`), whose columns its `Layout` knows.
- Under gradient checkpointing (not reentrant) a layer runs twice. A reading keeps what the first run gave, and the tap must stay
  open until after `backward`, or the second run saves other tensors.
- It reads activations only, so there is nothing to gather under ZeRO-3 and nothing to change for adapters.

Layers are chosen by `fgrpo.policy.attention_layers`, rows reduced by `fgrpo.policy.attention_sums`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.policy.attention_sums import Rows, Sums, sums_of

KNOWN = ("sdpa", "flash_attention_2", "flash_attention_3", "eager")
REENTRANT = (
    "attention read under reentrant gradient checkpointing has no gradient; set gradient_checkpointing_kwargs="
    "{'use_reentrant': False}, or leave gradient checkpointing out"
)
COMPILED = "attention of a compiled model cannot be read; leave torch.compile (torch_compile) out"
ARGUMENT = "attention_tap"  # of the language model, and through it of the attention function


@dataclass
class Reading:
    """What `AttentionTap.read` read: per forward pass {layer: sums of each row of the batch}."""

    rows: Sequence[Rows]
    keep_image: bool = False
    passes: list[dict[int, list[Sums]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """One forward pass, as an argument of its layers, so that a layer that is computed again finds the same rows."""

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
            reentrant gradient checkpointing with `gradient`. While reading: rows that the tap cannot read, with the reason.
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
        self._open = contextlib.ExitStack()
        self.is_open = False

    def __enter__(self) -> AttentionTap:
        self._open.enter_context(_in_place_of(self.model.config.get_text_config()._attn_implementation, self._attend))
        self._open.callback(self.language.register_forward_pre_hook(self._attach, with_kwargs=True).remove)
        self.is_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open = False
        self._open.close()

    @contextlib.contextmanager
    def read(self, rows: Sequence[Rows], *, keep_image: bool = False) -> Iterator[Reading]:
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
        reading.passes.append({})
        return args, {
            **given,
            ARGUMENT: _Pass(reading.rows, reading.keep_image, torch.is_grad_enabled(), reading.passes[-1]),
        }

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
                sums = [sums_of(query, key, mask, b, rows, scale, one.keep_image) for b, rows in enumerate(one.rows)]
            one.found.setdefault(layer, sums)
        return original(module, *args, **more)


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
        raise UserError(COMPILED)
    layer = next((m for m in language.modules() if getattr(m, "gradient_checkpointing", False)), None)
    function = getattr(layer, "_gradient_checkpointing_func", None)
    if gradient and function is not None and getattr(function, "keywords", {}).get("use_reentrant", True):
        raise UserError(REENTRANT)


def refuse_compiled(args: Any) -> None:
    """Raise UserError if a trainer with these arguments compiles its model, which its parts do not show before the first step."""
    if getattr(args, "torch_compile", False):
        raise UserError(COMPILED)


def _refuse(query: Tensor, key: Tensor, mask: Any, more: Mapping[str, Any]) -> None:
    if torch.compiler.is_compiling():
        raise UserError(COMPILED)
    if more.get("cu_seq_lens_q") is not None:
        raise UserError("attention cannot be read of packed sequences (cu_seq_lens_q); pass padded rows")
    if more.get("sliding_window") is not None or more.get("softcap") is not None:
        raise UserError("attention with a sliding window or a soft cap cannot be read")
    if query.shape[2] != key.shape[2]:
        raise UserError("attention is read of whole rows, not of steps of generation with a cache")


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
