"""What a model is, from its config.json alone: read from a folder, the hub's cache or the hub, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError

POLICY = "qwen2_5_vl"


def config_of(path: str | Path) -> dict[str, Any]:
    """The config.json of a saved folder or a hub name.

    Raises:
        UserError: nothing there, or a broken file.
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
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); save or download the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}, not a model's configuration; download it again")
    return config


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} is neither a folder with a model nor a model that the hub or its cache knows: {line}"
        ) from error


def check_policy(path: str | Path) -> dict[str, Any]:
    """The configuration of a Qwen2.5-VL at `path`, without loading weights.

    Raises:
        UserError: nothing there, a broken config.json, or another kind of model.
    """
    config = config_of(path)
    kind = config.get("model_type")
    if kind != POLICY:
        raise UserError(f"{path} holds a model of type {kind!r}; this needs a Qwen2.5-VL (type {POLICY!r})")
    return config


def positions(config: dict[str, Any]) -> int | None:
    """Tokens that the model's position embeddings reach (`max_position_embeddings`), None if it does not say."""
    value = config.get("text_config", config).get("max_position_embeddings", config.get("max_position_embeddings"))
    return int(value) if value else None


def sees(config: dict[str, Any]) -> bool:
    """Whether the model takes pictures."""
    return "vision_config" in config
