"""Tags of the format that a tokenizer declares as special tokens (`<think>` in some families) become plain text.

A special token is forbidden to the policy and dropped when a reply is decoded, so no reply could be well formed. The ids stay the
same; only "special" changes. Processors loaded by `fgrpo.policy.loading` have plain tags, and so have the models that our stages
save. A server reads a model's own files: `python -m fgrpo.policy.plain_tags <folder>` rewrites them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from fgrpo.cli import run
from fgrpo.errors import UserError
from fgrpo.policy.tokens import FORMAT_TAGS


def make_plain(tokenizer: Any, name: str) -> tuple[str, ...]:
    """Make `FORMAT_TAGS` plain text in a loaded tokenizer, in place; returns the tags that were special.

    Args:
        name: the model, for messages.

    Raises:
        UserError: one of them ends a turn or pads (both must be special), or the tokenizer is not one of the tokenizers library.
    """
    special = tuple(
        sorted(t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content in FORMAT_TAGS)
    )
    if not special:
        return ()
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) in special:
            raise UserError(
                f"{name} uses the tag {getattr(tokenizer, role)!r} of the answer format as its {role}; give it another {role} in "
                "tokenizer_config.json"
            )
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise UserError(f"{name} has the special tokens {', '.join(special)} and no tokenizer.json; save it with one")
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in FORMAT_TAGS
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))  # `add_tokens` cannot take "special" away
    tokenizer.extra_special_tokens = [t for t in tokenizer.extra_special_tokens if t not in FORMAT_TAGS]
    return special


def _main(args: argparse.Namespace) -> None:
    from fgrpo.policy import loading

    for folder in args.folder:
        loading.load_processor(folder).tokenizer.save_pretrained(folder)
        print(f"{folder}: the tags of the format are plain text")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", nargs="+", help="folder of a saved model")
    run(_main, arguments)
