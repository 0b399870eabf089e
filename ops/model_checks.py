"""What a preset's models need of its configuration: the frame in which they write boxes, and room for the token of `make anchor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.policy.tokens import FOCUS
from fgrpo.schema import Config
from ops.connectivity import Finding
from ops.memory_estimate import configuration
from sft.configured import check_anchor


def frames(config: Config) -> Iterator[Finding]:
    """Compare `policy.box_frame`, which prompts ask for and rewards read, with the frame that base model and teacher know."""
    asked = config.policy.box_frame
    for role in ("base", "teacher"):
        model = str(getattr(config.models, role))
        try:
            family = backbone.lookup(configuration(model).get("model_type"), model)
        except UserError as error:
            yield Finding("warn", f"the family of the {role} model is unknown: {error}", "# docs/backbones.md")
            continue
        if family.box_frame == asked:
            yield Finding("ok", f"{role} model {model} ({family.title}) writes boxes in the frame {asked}")
        else:
            yield Finding(
                "warn",
                f"{role} model {model} ({family.title}) writes boxes in the frame {family.box_frame}, and policy.box_frame is {asked}",
                f"SET=policy.box_frame={family.box_frame}  # else SFT must teach the other frame (docs/backbones.md)",
            )


def check_anchored(config: Config) -> None:
    """Check that the anchor stage can give the base model its token, where a method needs that; before stages that take days.

    Raises:
        UserError: adapters are configured for it, or the base model is here and has no unused row.
    """
    if config.rl.start != "anchor":
        return
    check_anchor(config)
    rows, tokens, is_there = vocabulary(config.models.base) or (1, 0, False)
    if tokens >= rows and not is_there and not config.anchor.add_row:
        raise UserError(
            f"{config.models.base} has an embedding of {rows} rows for {tokens} tokens, so none is left for {FOCUS}, which the method "
            f"{config.method} needs (rl.start=anchor); set anchor.add_row=true to add one, or anchor another model"
        )


def anchoring(config: Config) -> Iterator[Finding]:
    """Whether the stage between SFT and RL that the method needs can run; nothing for other methods."""
    if config.rl.start != "anchor":
        return
    try:
        check_anchored(config)
    except UserError as error:
        setting = "sft.lora=null" if config.sft.lora is not None else "anchor.add_row=true"
        yield Finding("fail", str(error), f"make anchor PRESET={config.preset} SET={setting}")
        return
    room = (
        ""
        if vocabulary(config.models.base)
        else f"; {config.models.base} is not here, so its room for the token is unknown"
    )
    yield Finding("ok", f"{config.method} starts from the model of `make anchor`, which runs between SFT and RL{room}")


def vocabulary(model: str) -> tuple[int, int, bool] | None:
    """(rows of the embedding, tokens of the tokenizer, whether it has the token); None for a model that is not on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from tokenizers import Tokenizer

    file: object = Path(model) / "tokenizer.json"
    if not Path(model).is_dir():
        try:
            file = try_to_load_from_cache(model, "tokenizer.json")
        except HFValidationError:
            return None
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return None
    described = configuration(model)
    rows = (described.get("text_config") or {}).get("vocab_size") or described.get("vocab_size")
    tokenizer = Tokenizer.from_file(str(file))
    has_token = tokenizer.token_to_id(FOCUS) is not None
    return None if rows is None else (int(rows), tokenizer.get_vocab_size(with_added_tokens=True), has_token)
