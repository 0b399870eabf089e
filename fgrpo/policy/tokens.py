"""Which tokens sampling must never give, read from a saved tokenizer's files without torch or transformers.

`fgrpo.policy.loading.forbidden_token_ids` gives the same ids from a loaded tokenizer (tested to agree); this is for processes that reach
their model through an endpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError

SPECIAL_SHAPE = re.compile(r"<\|[a-z0-9_]+\|>")
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


def forbidden_token_ids(model: str) -> tuple[int, ...]:
    """Ids of special and vision tokens except the end of a turn, and of output rows beyond the tokenizer's vocabulary.

    Args:
        model: a saved folder, or a hub name whose tokenizer files are in the cache or can be fetched (a few megabytes).

    Raises:
        UserError: the files are not to be had, or are broken.
    """
    tokenizer, settings, config = (_json(model, name) for name in FILES)
    try:
        added = tokenizer["added_tokens"]
        size = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in added)])
        text_config = config.get("text_config") or config
        rows = int(text_config.get("vocab_size", size))
        eos = _content(settings.get("eos_token"))
        special = {
            t["id"] for t in added if (t["special"] or SPECIAL_SHAPE.fullmatch(t["content"])) and t["content"] != eos
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"the tokenizer files of {model} are not what they should be ({error!r}); fetch them again"
        ) from error
    return tuple(sorted(special | set(range(size, rows))))


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _json(model: str, name: str) -> dict[str, Any]:
    path = Path(model) / name
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            path = Path(hf_hub_download(model, name))
        except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
            raise UserError(
                f"{model} is neither a folder nor a hub model whose {name} can be had, so nobody knows which tokens must "
                f"not be sampled; fetch it with `hf download {model} {' '.join(FILES)}`"
            ) from error
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); save or download the model again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not an object; save or download the model again")
    return data
