"""Layered configuration: paper.yaml, scale/<preset>.yaml, method/<method>.yaml, overlays and dotted overrides.

An overlay is a file of configs/overlay that changes a few keys for one purpose (`lora`, `one-node`, `multi-node`); among the
overrides it is written "@lora". Later layers win; an unknown key is an error that names the nearest known one. A stage sees the slice of the
configuration it depends on (`stage_slice`); what a change of a key means is in `fgrpo.key_kinds`.

Command: `python -m fgrpo.config --preset mini --method fgrpo` prints the merged configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from fgrpo.errors import UserError, unknown
from fgrpo.installed import CONFIGS, packaged, yaml_files
from fgrpo.key_kinds import Kind, of_kind
from fgrpo.schema import Config

OVERLAY = "@"  # marks the name of an overlay among the overrides

# What each stage depends on (dotted keys). A stage reruns if its own slice or the output of an earlier stage changed.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "world": ("seed", "world", "data.root"),
    "data": ("seed", "models.base", "engine", "policy", "prompts", "world", "data"),
    "mcts": (  # the teacher has the bounds of its own processor; SFT converts its boxes
        *(
            "seed",
            "models.teacher",
            "engine",
            "policy.box_tag",
            "policy.box_frame",
            "prompts.teacher",
            "prompts.think",
            "mcts",
        ),
    ),
    "sft": ("seed", "models.base", "policy.pixels", "prompts.think", "sft", "data.validation_share"),
    "anchor": ("seed", "policy.pixels", "sft", "anchor", "data.validation_share"),
    "rl": ("seed", "method", "policy", "prompts.think", "rl", "judges.training"),
    "eval": (
        "seed",
        "models.base",
        "engine",
        "policy",
        "prompts",
        "data.root",
        "world",
        "judges.evaluation",
        "judges.extraction",
        "eval",
    ),
}


def load(preset: str, method: str = "fgrpo", overrides: Iterable[str] = (), *, configs: Path = CONFIGS) -> Config:
    """Merge the layers and validate the result.

    Args:
        preset: a file of configs/scale, such as "mini" or "paper-7b".
        method: a file of configs/method, such as "fgrpo" or "grpo-t".
        overrides: dotted assignments such as "rl.kl_coef=0.02" (values are YAML), and overlays ("@lora", "@lora,one-node").

    Raises:
        UserError: unknown preset, method, overlay or key (suggests the nearest), or an invalid value (names the key).
    """
    merged = _read(configs / "paper.yaml")
    for kind, folder, name in (("preset", "scale", preset), ("method", "method", method)):
        layer = _layer(configs, kind, folder, name)
        for inherited in reversed(_parents(layer, configs / folder)):
            merged = _merge(merged, inherited)
        merged = _merge(merged, layer)
    for text in overrides:
        for above in _above(text, configs):
            merged = _merge(merged, above)
    merged["preset"], merged["method"] = preset, method
    for section in (merged.get("engine"), *dict(merged.get("judges") or {}).values()):
        if isinstance(section, dict) and isinstance(section.get("endpoints"), list):
            section["endpoints"] = [str(entry).replace("{preset}", preset) for entry in section["endpoints"]]
    try:
        return Config.model_validate(packaged(merged))
    except ValidationError as error:
        raise _explain(error) from error


def _above(text: str, configs: Path) -> list[dict[str, Any]]:
    """The layers of an override: one assignment, or the overlays of "@lora,one-node"."""
    if not text.startswith(OVERLAY):
        return [_assignment(text)]
    names = text.removeprefix(OVERLAY).split(",")
    return [_layer(configs, "overlay", "overlay", name.strip()) for name in names]


def _layer(configs: Path, kind: str, folder: str, name: str) -> dict[str, Any]:
    files = yaml_files(configs / folder)
    if name not in files:
        raise unknown(kind, name, files)
    return _read(files[name])


def _parents(layer: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Layers named by `extends:` (nearest first); removes the key from `layer`."""
    parents = []
    while (name := layer.pop("extends", None)) is not None:
        files = yaml_files(folder)
        if name not in files:
            raise unknown("parent layer", name, files)
        layer = _read(files[name])
        parents.append(layer)
    return parents


def stage_slice(config: Config, stage: str) -> dict[str, Any]:
    """The experiment keys that `stage` depends on, as plain JSON (for "rl-fgrpo" and "eval/x" the prefix counts)."""
    return of_kind(stage_keys(config, stage), Kind.EXPERIMENT)


def stage_keys(config: Config, stage: str) -> dict[str, Any]:
    """All keys that `stage` reads, of every kind (`fgrpo.key_kinds`), as plain JSON."""
    kind = stage if stage in STAGE_KEYS else stage.replace("/", "-").split("-", 1)[0]
    plain = config.model_dump(mode="json")
    out: dict[str, Any] = {}
    for key in STAGE_KEYS.get(kind, ()):
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        out[key] = value
    return out


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        inside = f"{prefix}{name}.<name>." if get_origin(info.annotation) is dict else f"{prefix}{name}."
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += known_keys(kind, inside)
    return keys


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds a {type(data).__name__}, and a configuration layer is a mapping of keys to values"
        )
    return data


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        out[key] = (
            _merge(out[key], value) if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) else value
        )
    return out


def _assignment(text: str) -> dict[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"cannot read the override {text!r}; write it as dotted.key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value of the override {text!r} is not valid YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _explain(error: ValidationError) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown("configuration key", key, known_keys())
    if key.endswith("api_key_env"):  # the value may be the secret itself, so the message leaves it out
        return UserError(f"configuration key {key!r} is the name of an environment variable, not the API key itself")
    return UserError(f"configuration key {key!r}: {first['msg']} (got {first.get('input')!r})")


def main() -> None:
    """Print the merged configuration."""
    from fgrpo.cli import parser, run

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    run(body, parser("print the merged configuration"))


if __name__ == "__main__":
    main()
