"""What a model is, from its small files alone: read from a folder, the hub's cache or the hub, without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.installed import CONFIGS
from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone
from fgrpo.schema_base import Pixels

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors")
_NAMED = 3  # missing files in a message


def config_of(path: str | Path) -> dict[str, Any]:
    """The config.json of a saved folder or a hub name.

    Raises:
        UserError: no such model, or a broken file.
    """
    folder = Path(path)
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file():
            raise UserError(
                f"{path} has no config.json, so it is not a saved model; is the stage that writes it finished?"
            )
    elif folder.is_file():
        raise UserError(f"{path} is a file; a model is a folder that has config.json and its weights")
    else:
        file = _from_hub(str(path))
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. UserError: there is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read, or is not JSON ({error}); save or download the model again") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} holds a {type(data).__name__}, not an object; save or download the model again")
    return data


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} is neither a folder with a model nor a model of the hub or its cache: {line}"
        ) from error


def published(model: str | Path) -> dict[str, Any] | None:
    """The config.json of a model's published size (configs/shapes, by the model's name); None for a folder, or without such a file."""
    file = CONFIGS / "shapes" / f"{Path(model).name}.json"
    return read_object(file) if file.is_file() and not Path(model).is_dir() else None


def check_policy(path: str | Path) -> dict[str, Any]:
    """The config.json of a model of a known family at `path`, without loading weights.

    Raises:
        UserError: no such model, a broken config.json, or an unknown family.
    """
    config = config_of(path)
    backbone.lookup(config.get("model_type"), str(path))
    return config


def backbone_of(path: str | Path) -> Backbone:
    """The family of the model at `path`.

    Raises:
        UserError: as `check_policy`.
    """
    return backbone.lookup(check_policy(path).get("model_type"), str(path))


def is_here(model: str | Path) -> bool:
    """Whether a model, weights included, is a saved folder, or is in the hub's cache."""
    return not lacks(model)


def lacks(model: str | Path) -> str:
    """What is missing of a model in its folder or in the hub's cache, for messages; "" if its weights are complete.

    A download that was stopped leaves config.json and some of the files that the index of the weights names.
    """
    if _local_file(model, "config.json") is None:
        return "has no config.json" if Path(model).is_dir() else "is not downloaded"
    if any(_local_file(model, name) for name in WEIGHTS):
        return ""
    index = next(filter(None, (_local_file(model, f"{name}.index.json") for name in WEIGHTS)), None)
    if index is None:
        return f"lacks its weights ({WEIGHTS[0]}, or {WEIGHTS[0]}.index.json and what that names)"
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict):
        return f"has a broken {index.name}"
    missing = sorted({str(part) for part in parts.values() if _local_file(model, str(part)) is None})
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"is not complete: it lacks {', '.join(missing[:_NAMED])}{more}" if missing else ""


def positions(config: dict[str, Any]) -> int | None:
    """Tokens that the model's position embeddings reach (`max_position_embeddings`), None if it does not say."""
    value = config.get("text_config", config).get("max_position_embeddings", config.get("max_position_embeddings"))
    return int(value) if value else None


def sees(config: dict[str, Any]) -> bool:
    """Whether the model takes images."""
    return "vision_config" in config


def pixel_bounds(model: str | Path, asked: Pixels | None = None) -> PixelBounds:
    """How images are resized for `model`: the bounds of its processor, with those of `asked` in their place.

    What is asked for must leave a square image a grid of k x k whole image tokens; a long one then has 1 x k². Other shapes
    may leave the bounds by less than a row and a column of tokens, because the processor rounds both sides.

    Args:
        model: a saved folder, or a name. For a name, the files in the hub's cache count; a model without a processor file
            there (one that is only served) has the published bounds of its family. Without a readable config.json, the
            family is that of configs/shapes, or the default one (loading reports a broken file).
        asked: the configuration's `policy.pixels`, or the `pixels` of an evaluated model.

    Raises:
        UserError: the folder has no processor file, or a broken one; or no square of whole image tokens lies within the bounds.
    """
    own = _own_bounds(model)
    if asked is None or not asked.is_set:
        return own
    least = own.min_pixels if asked.min is None else asked.min
    most = own.max_pixels if asked.max is None else asked.max
    cell = own.factor**2
    for name, value in (("min", asked.min), ("max", asked.max)):
        if value is not None and value < cell:
            raise UserError(
                f"pixels.{name} is {value:,}, less than one image token of {model}, which has {own.factor} x {own.factor} = {cell:,} pixels"
            )
    if least > most:
        raise UserError(
            f"pixels: the least of {least:,} is more than the most of {most:,} (the processor of {model} has "
            f"{own.min_pixels:,} to {own.max_pixels:,}); set both pixels.min and pixels.max"
        )
    bounds = PixelBounds(least, most, own.factor)
    if not _holds_a_square(bounds):
        raise UserError(
            f"pixels: no image of whole tokens lies between {least:,} and {most:,} pixels, where a token of {model} has "
            f"{own.factor} x {own.factor}; set pixels.max to {_square_above(bounds)} or more, or pixels.min to "
            f"{_square_below(bounds)} or less"
        )
    return bounds


def _square_below(bounds: PixelBounds) -> int:
    """The pixels of the largest square of whole image tokens that has at most `max_pixels`."""
    return (math.isqrt(bounds.max_pixels // bounds.factor**2) * bounds.factor) ** 2


def _square_above(bounds: PixelBounds) -> int:
    """The pixels of the smallest square of whole image tokens that has at least `min_pixels`."""
    tokens = -(-bounds.min_pixels // bounds.factor**2)
    return ((math.isqrt(tokens - 1) + 1) * bounds.factor) ** 2


def _holds_a_square(bounds: PixelBounds) -> bool:
    return _square_below(bounds) >= bounds.min_pixels


def carried_bounds(checkpoint: str | Path, asked: Pixels) -> PixelBounds:
    """How images are resized for a checkpoint of SFT or RL, whose processor carries the bounds that it was trained with.

    Args:
        asked: the configuration's `policy.pixels`.

    Raises:
        UserError: as `pixel_bounds`, or it was trained with other bounds than those of `asked`.
    """
    own = _own_bounds(checkpoint)
    pairs = (("min", asked.min, own.min_pixels), ("max", asked.max, own.max_pixels))
    wrong = next((pair for pair in pairs if pair[1] is not None and pair[1] != pair[2]), None)
    if wrong is not None:
        name, wanted, carried = wrong
        raise UserError(
            f"policy.pixels.{name} is {wanted:,}, and {checkpoint} was trained with {carried:,} (its processor's file); "
            f"set policy.pixels.{name}={carried} or null, or run `make sft` again under a new RUNS folder"
        )
    return own


def asked_bounds(model: str | Path, asked: Pixels) -> PixelBounds | None:
    """`pixel_bounds` if `asked` sets one of them; None = the processor's own. Raises as `pixel_bounds`."""
    return pixel_bounds(model, asked) if asked.is_set else None


def processor_arguments(bounds: PixelBounds) -> dict[str, int]:
    """Bounds as the arguments of a processor, and of vLLM (`mm_processor_kwargs`)."""
    return {"min_pixels": bounds.min_pixels, "max_pixels": bounds.max_pixels}


def _own_bounds(model: str | Path) -> PixelBounds:
    family = assumed_family(model)
    for name in family.processor_files:
        file = _local_file(model, name)
        if file is not None:
            return _read_bounds(file, family)
    if Path(model).is_dir():
        raise UserError(f"{model} has none of {', '.join(family.processor_files)}; copy the base model's file there")
    return family.pixels


def assumed_family(model: str | Path) -> Backbone:
    """The family that a model's config.json states, or its file of configs/shapes; the default one without both, or if it is unknown.

    Args:
        model: as in `pixel_bounds`.
    """
    config = _local_file(model, "config.json")
    if config is None:
        return backbone.assumed((published(model) or {}).get("model_type"))
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a model to load is checked by `check_policy`; a served one needs no config.json
        return backbone.default()
    return backbone.assumed(data.get("model_type") if isinstance(data, dict) else None)


def _local_file(model: str | Path, name: str) -> Path | None:
    """A file of a saved folder, or of the hub's cache; None if it is not there."""
    if Path(model).is_dir():
        file = Path(model) / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(str(model), name)
    except HFValidationError:  # not the name of a hub model
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read_bounds(file: Path, family: Backbone) -> PixelBounds:
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        settings = data.get("image_processor", data)
        extent = settings.get("size") or {}
        least = settings.get("min_pixels") or extent["shortest_edge"]
        most = settings.get("max_pixels") or extent["longest_edge"]
        return PixelBounds(int(least), int(most), family.pixels.factor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} does not state the least and the most pixels of an image ({error!r}); save or download the model again"
        ) from error
