"""Tags of the format that a tokenizer holds as tokens of their own (`<think>` in some families) become plain text.

- A special token is forbidden to the policy and dropped when a reply is decoded, so no reply could be well formed. Its id stays
  the same; only "special" changes.
- A token that the checkpoint never learned (`Backbone.untrained_tags`: Qwen3-VL Instruct) has a random embedding, so the model can
  neither read nor write it. Its id gets another, special text, and the tag is written in ordinary tokens. A checkpoint whose
  chat template writes the tag knows its token, which stays.

Processors loaded by `fgrpo.policy.loading` have plain tags, and so have the models that our stages save. A server reads a model's own
files: `python -m fgrpo.policy.plain_tags <folder>` rewrites them; `plain_copy` makes a copy beside a model of the hub.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fgrpo.cli import run
from fgrpo.errors import UserError
from fgrpo.policy.tokens import FORMAT_TAGS, untrained_ids


def make_plain(tokenizer: Any, name: str, untrained: Collection[str] = ()) -> tuple[str, ...]:
    """Make `FORMAT_TAGS` plain text in a loaded tokenizer, in place; returns the tags that were special or untrained.

    Args:
        name: the model, for messages.
        untrained: tags whose tokens the checkpoint never learned.

    Raises:
        UserError: one of them ends a turn or pads (both must be special), or the tokenizer is not one of the tokenizers library.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {t.content for t in added if t.special and t.content in FORMAT_TAGS}
    changed = tuple(sorted(special | {t.content for t in added if t.content in untrained}))
    if not changed:
        return ()
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) in changed:
            raise UserError(
                f"{name} uses the tag {getattr(tokenizer, role)!r} of the answer format as its {role}; give it another {role} in "
                "tokenizer_config.json"
            )
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise UserError(f"{name} has tokens for the tags {', '.join(changed)} and no tokenizer.json; save it with one")
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in untrained:
            token["content"], token["special"] = f"<|untrained_{token['id']}|>", True
        token["special"] = token["special"] and token["content"] not in FORMAT_TAGS
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))  # `add_tokens` cannot take "special" away
    tokenizer.extra_special_tokens = [t for t in tokenizer.extra_special_tokens if t not in FORMAT_TAGS]
    return changed


def plain_copy(model: str, folder: Path) -> str | None:
    """A processor with plain tags in `folder`, for a server of `model`; None if no tag of the model's own is untrained.

    Raises:
        UserError: as `fgrpo.policy.tokens.untrained_ids` and `fgrpo.policy.loading.load_processor`.
    """
    if not untrained_ids(model):
        return None
    from fgrpo.policy import loading

    loading.load_processor(model).save_pretrained(folder)
    return str(folder)


def _main(args: argparse.Namespace) -> None:
    from fgrpo.policy import loading

    for folder in args.folder:
        loading.load_processor(folder).tokenizer.save_pretrained(folder)
        print(f"{folder}: the tags of the format are plain text")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", nargs="+", help="folder of a saved model")
    run(_main, arguments)
