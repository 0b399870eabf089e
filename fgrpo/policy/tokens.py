"""Which tokens sampling must never give, read from a saved tokenizer's files without torch or transformers.

`fgrpo.policy.loading.forbidden_token_ids` gives the same ids from a loaded tokenizer (tested to agree). This module is for
processes that reach their model through an endpoint.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.policy.model_files import read_object

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
TAG_NAMES = ("think", "thinking", "answer", "bbox", "box")
FORMAT_TAGS = frozenset(tag for name in TAG_NAMES for tag in (f"<{name}>", f"</{name}>"))
"""The tags of the formats that prompts ask for. They are text, also where a tokenizer calls them special tokens."""
FOCUS = "<|focus|>"
"""The token at the end of the user's turn whose attention is anchored (`fgrpo.policy.focus`)."""


def special_token(text: str) -> str | None:
    """The first special token of any known family that is written out in `text`, None if there is none."""
    match = _special_tokens(tuple(backbone.names())).search(text)
    return match.group(0) if match else None


@lru_cache(maxsize=8)
def _special_tokens(families: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{backbone.lookup(name).special_tokens})" for name in families))


def forbidden_token_ids(model: str) -> tuple[int, ...]:
    """Ids of special and vision tokens, and of output rows beyond the tokenizer's vocabulary.

    The end of a turn and `FORMAT_TAGS` are allowed, as far as the checkpoint learned their tokens.

    Args:
        model: a saved folder, or a hub name whose tokenizer files are in the cache or can be downloaded (a few megabytes).

    Raises:
        UserError: the files are not available, or are broken.
    """
    tokenizer, settings, config = (_json(model, name) for name in FILES)
    shape = re.compile(backbone.assumed(config.get("model_type")).special_tokens)
    untrained = untrained_ids(model)
    try:
        added = tokenizer["added_tokens"]
        size = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in added)])
        text_config = config.get("text_config") or config
        rows = int(text_config.get("vocab_size", size))
        eos = _content(settings.get("eos_token"))
        special = {t["id"] for t in added if t["special"] or shape.fullmatch(t["content"])}
        special -= {t["id"] for t in added if t["content"] == eos or t["content"] in FORMAT_TAGS}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the tokenizer files of {model} are broken ({error!r}); download them again") from error
    return tuple(sorted({*special, *untrained, *range(size, rows)}))


def has_focus(model: str) -> bool:
    """Whether a saved folder, or a hub name, has the token `FOCUS`.

    Raises:
        UserError: as `forbidden_token_ids`.
    """
    try:
        return any(token["content"] == FOCUS for token in _json(model, FILES[0])["added_tokens"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the tokenizer files of {model} are broken ({error}); download them again") from error


def untrained_tags(family: backbone.Backbone, template: str) -> tuple[str, ...]:
    """The tags of `family` whose tokens a checkpoint with this chat template never learned."""
    return tuple(tag for tag in family.untrained_tags if tag not in template)


def chat_template(model: str) -> str:
    """The chat template of a saved folder or of a hub name, "" if it has none.

    Raises:
        UserError: a file of it is broken.
    """
    for name in ("chat_template.jinja", "tokenizer_config.json", "chat_template.json"):
        try:
            path = _path(model, name)
        except UserError:  # not every model has each of them
            continue
        if not path.is_file():
            continue
        template = (
            path.read_text(encoding="utf-8") if path.suffix == ".jinja" else _json(model, name).get("chat_template")
        )
        if template:
            return template if isinstance(template, str) else json.dumps(template)
    return ""


def untrained_ids(model: str) -> tuple[int, ...]:
    """Ids of the tags that are untrained tokens of a model as its files are; () once its tags are plain.

    Raises:
        UserError: as `forbidden_token_ids`.
    """
    family = backbone.assumed(_json(model, "config.json").get("model_type"))
    if not family.untrained_tags:
        return ()
    untrained = untrained_tags(family, chat_template(model))
    try:
        return tuple(t["id"] for t in _json(model, FILES[0])["added_tokens"] if t["content"] in untrained)
    except (KeyError, TypeError) as error:
        raise UserError(f"the tokenizer files of {model} are broken ({error}); download them again") from error


def check_served_tags(model: str) -> None:
    """Refuse a model whose server would leave the tags of the format out of its replies.

    A server decodes without special tokens. `fgrpo.policy.plain_tags` makes the tags plain text in a saved model.

    Raises:
        UserError: the tokenizer has `FORMAT_TAGS` among its special tokens, or as `forbidden_token_ids`.
    """
    try:
        special = sorted({t["content"] for t in _json(model, FILES[0])["added_tokens"] if t["special"]} & FORMAT_TAGS)
    except (KeyError, TypeError) as error:
        raise UserError(f"the tokenizer files of {model} are broken ({error}); download them again") from error
    if special:
        raise UserError(
            f"{', '.join(special)} are special tokens of {model}, so a server drops them from its replies and every answer would "
            f"count as malformed; run `python -m fgrpo.policy.plain_tags {model}` on the model's folder, then serve it again"
        )


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _path(model: str, name: str) -> Path:
    """A file of a saved folder, whether it is there or not, or of the hub. UserError: the hub's is not available."""
    if Path(model).is_dir():
        return Path(model) / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, name))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise UserError(
            f"{model} is neither a folder nor a hub model whose {name} is available, so the tokens that must not be "
            f"sampled are unknown; download it with `hf download {model} {' '.join(FILES)}`"
        ) from error


def _json(model: str, name: str) -> dict[str, Any]:
    return read_object(_path(model, name))
