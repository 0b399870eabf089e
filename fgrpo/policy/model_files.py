"""What a model is, from its small files alone: read from a folder, the hub's cache or the hub, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone


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
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON ({error}); save or download the model again") from error
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


def positions(config: dict[str, Any]) -> int | None:
    """Tokens that the model's position embeddings reach (`max_position_embeddings`), None if it does not say."""
    value = config.get("text_config", config).get("max_position_embeddings", config.get("max_position_embeddings"))
    return int(value) if value else None


def sees(config: dict[str, Any]) -> bool:
    """Whether the model takes images."""
    return "vision_config" in config


def pixel_bounds(model: str | Path) -> PixelBounds:
    """How `model`'s processor resizes images.

    Args:
        model: a saved folder, or a name. For a name, the files in the hub's cache count; a model without a processor file
            there (one that is only served) has the published bounds of its family. Without a readable config.json, the
            family is the default one (loading reports a broken file).

    Raises:
        UserError: the folder has no processor file, or a broken one.
    """
    family = assumed_family(model)
    for name in family.processor_files:
        file = _local_file(model, name)
        if file is not None:
            return _read_bounds(file, family)
    if Path(model).is_dir():
        raise UserError(f"{model} has none of {', '.join(family.processor_files)}; copy the base model's file there")
    return family.pixels


def assumed_family(model: str | Path) -> Backbone:
    """The family that a model's config.json states; the default one if it states none that is known, or is not at hand.

    Args:
        model: as in `pixel_bounds`.
    """
    config = _local_file(model, "config.json")
    if config is None:
        return backbone.default()
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
