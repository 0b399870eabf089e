"""What a model family is: every fact about it in one frozen object, looked up by the `model_type` of config.json.

A family is one file of fgrpo/policy/backbones: `<model_type>.py` exposes `BACKBONE`. There is nothing to register. A
family that computes something in another way subclasses `Backbone` there and overrides the method.

This module imports neither torch nor transformers: classes are named, and imported when a method needs them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import image_tokens
from fgrpo.policy import backbones
from fgrpo.types import Frame

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Backbone:
    """One model family. Shapes: U prompts, L tokens, H hidden size, F numbers per image token (H, or more).

    Attributes:
        model_type: its name in config.json, and the name of its file.
        title: its name in messages.
        model_class_name, config_class_name: classes of transformers.
        pixels: the published bounds of a resized image, and pixels per image token side.
        processor_files: files of a saved model that may hold its own bounds; the first that exists counts.
        vision: last part of the vision tower's module name.
        projectors: names of the projectors into the language model, modules directly below the vision tower.
        language: the language model's module name below `model`.
        image_token: the text of one image token.
        image_token_attribute: its id, as an attribute of the model's configuration and of the processor.
        video_token_attribute: the id of a video token in the configuration, None if the family has none.
        marker_attributes: ids of the tokens around an image, in the configuration; each stands there once.
        grid_field: the processor's output with the grid (images, 3) of each image's patches, also an argument of the model.
        special_tokens: a regular expression for special tokens that are written out in a text.
        lora_projections: linear layers of the language model that get adapters.
        other_modalities: kinds of input besides images that vLLM must exclude; () if vLLM needs no such limits.
        box_frame: the frame in which its published checkpoints write boxes (`policy.box_frame` may ask for another).
        untrained_tags: tags of the answer format that its tokenizer has as one token each. Checkpoints whose chat template does
            not write them never learned these tokens. There they are plain text (`fgrpo.policy.plain_tags`).
    """

    model_type: str
    title: str
    model_class_name: str
    config_class_name: str
    pixels: PixelBounds
    processor_files: tuple[str, ...]
    vision: str
    projectors: tuple[str, ...]
    language: str
    image_token: str
    image_token_attribute: str
    video_token_attribute: str | None
    marker_attributes: tuple[str, ...]
    grid_field: str
    special_tokens: str
    lora_projections: tuple[str, ...]
    other_modalities: tuple[str, ...] = ()
    box_frame: Frame = "model"
    untrained_tags: tuple[str, ...] = ()

    def model_class(self) -> Any:
        """transformers' class of the model."""
        return getattr(importlib.import_module("transformers"), self.model_class_name)

    def config_class(self) -> Any:
        """transformers' class of its configuration."""
        return getattr(importlib.import_module("transformers"), self.config_class_name)

    @property
    def lora_targets(self) -> str:
        """peft's pattern: every linear layer of the language model, none of the vision tower."""
        return rf".*{self.language}.*\.({'|'.join(self.lora_projections)})"

    def is_vision(self, parameter: str) -> bool:
        """Whether a parameter of the model, by its name, belongs to the vision tower (projector included)."""
        return f".{self.vision}." in f".{parameter}"

    def is_projector(self, parameter: str) -> bool:
        """Whether a parameter of the model, by its name, belongs to a projector."""
        _, is_vision, inside = f".{parameter}".rpartition(f".{self.vision}.")
        return bool(is_vision) and inside.split(".")[0] in self.projectors

    def vision_tower(self, model: Any) -> Any:
        """The vision tower of a model, also inside wrappers.

        Raises:
            UserError: the model has none.
        """
        for name, module in model.named_modules():
            if name.rsplit(".", 1)[-1] == self.vision:
                return module
        raise UserError(
            f"a {type(model).__name__} has no vision tower named `{self.vision}`; this needs a {self.title} model"
        )

    def image_token_id(self, source: Any) -> int:
        """The id of an image token. `source` is the model's configuration, or the processor."""
        return int(getattr(source, self.image_token_attribute))

    def placeholder_ids(self, config: Any) -> set[int]:
        """Ids of image and video tokens, as far as the model's configuration has them."""
        return _ids(config, (self.image_token_attribute, self.video_token_attribute))

    def vision_token_ids(self, config: Any) -> set[int]:
        """`placeholder_ids`, and the ids of the tokens around an image."""
        return self.placeholder_ids(config) | _ids(config, self.marker_attributes)

    def prompt_tokens(self, image: str, bounds: PixelBounds) -> int:
        """Tokens that an image takes in a prompt: its own, and those around them.

        Args:
            image: path.
            bounds: the processor's (`fgrpo.policy.model_files.pixel_bounds`).

        Raises:
            one of `fgrpo.images.IMAGE_ERRORS`: as `fgrpo.images.image_tokens`.
        """
        return image_tokens(image, bounds) + len(self.marker_attributes)

    def image_features(self, model: Any, pixel_values: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        """Features (image tokens, F) of each image; `pixel_values` and `grids` (images, 3) are the processor's."""
        return tuple(model.model.get_image_features(pixel_values, grids).pooler_output)

    def tower_features(self, output: Any) -> Tensor:
        """Features (image tokens, F) of a vision tower's output, of all its images together."""
        features: Tensor = output.pooler_output
        return features

    def tower_output(self, tower: Any, features: Tensor) -> Any:
        """The output of `tower` that holds `features` (image tokens, F): the inverse of `tower_features`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled: Any = features
        return BaseModelOutputWithPooling(pooler_output=pooled)

    def prefill(
        self,
        model: Any,
        ids_UL: Tensor,
        is_image_UL: Tensor,
        features: Sequence[Tensor],
        position_AUL: Tensor,
        mask_UL: Tensor,
        cache: Any,
    ) -> Tensor:
        """One forward pass over prompts whose image features are known; fills `cache`, returns the last logits (U, V).

        Args:
            features: (image tokens, F) of each prompt's images, in the order of the prompts; empty without images.
            position_AUL: as `positions`.
        """
        embeds_ULH = model.get_input_embeddings()(ids_UL)
        if features:
            import torch

            embeds_ULH = embeds_ULH.masked_scatter(is_image_UL[..., None], torch.cat(list(features)).to(embeds_ULH))
        logits_UV: Tensor = model(
            inputs_embeds=embeds_ULH,
            attention_mask=mask_UL,
            position_ids=position_AUL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits_UV

    def patches_per_token(self, tower: Any) -> int:
        """How many patches of the vision tower one image token merges."""
        return int(tower.spatial_merge_size) ** 2

    def positions(
        self, model: Any, ids_UL: Tensor, is_image_UL: Tensor, grids: Tensor | None, mask_UL: Tensor
    ) -> Tensor:
        """Rotary positions (axes, U, L) of prompts whose image tokens are marked; `grids` (images, 3)."""
        positions: Tensor
        positions, _ = model.model.get_rope_index(
            ids_UL, mm_token_type_ids=is_image_UL.int(), attention_mask=mask_UL, **{self.grid_field: grids}
        )
        return positions

    def vllm_limits(self, images: int | None = None) -> dict[str, int]:
        """vLLM's `limit_mm_per_prompt`: images per prompt (None: vLLM's own limit), nothing of another kind."""
        limits = {} if images is None else {"image": images}
        return {**limits, **dict.fromkeys(self.other_modalities, 0)}


def names() -> list[str]:
    """The families there are: every file of fgrpo/policy/backbones."""
    return sorted(module.name for module in pkgutil.iter_modules(backbones.__path__))


def lookup(model_type: object, what: str = "the model") -> Backbone:
    """The family of this `model_type`.

    Args:
        what: the model, for the message.

    Raises:
        UserError: no file of fgrpo/policy/backbones describes it (names those that exist).
    """
    known = names()
    if model_type not in known:
        raise UserError(
            f"{what} is of type {model_type!r}; known model families: {', '.join(known)} (fgrpo/policy/backbones)"
        )
    backbone: Backbone = importlib.import_module(f"fgrpo.policy.backbones.{model_type}").BACKBONE
    return backbone


def of_model(model: Any) -> Backbone:
    """The family of a loaded model, also of one in a wrapper that passes its `config` through."""
    return lookup(getattr(getattr(model, "config", None), "model_type", None), f"a {type(model).__name__}")


def assumed(model_type: object) -> Backbone:
    """The family of this `model_type`; the default family if it is unknown.

    For models that are not ours to load: an endpoint's, a judge, or a model of the user's own in the drop-in trainer.
    """
    return lookup(model_type) if model_type in names() else default()


def default() -> Backbone:
    """The family assumed for a model whose config.json is not at hand."""
    return lookup(backbones.DEFAULT)


def _ids(config: Any, attributes: Iterable[str | None]) -> set[int]:
    ids = (getattr(config, name, None) for name in attributes if name is not None)
    return {int(token) for token in ids if token is not None}
