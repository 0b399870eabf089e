"""Qwen2.5's tokenizer from Qwen3's, which has the same entries and four tags more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError

ENTRIES = 151_643  # of the byte-pair vocabulary; the added tokens follow
CUT = 151_665  # the first id that Qwen2.5 does not have
ROWS = 152_064  # of the 7B model's output layer
ADDED = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<|vision_start|>": 151_652,
    "<|vision_end|>": 151_653,
    "<|image_pad|>": 151_655,
    "<|video_pad|>": 151_656,
    "<tool_call>": 151_657,
    "<|file_sep|>": 151_664,
}


def cut(tokenizer: dict[str, Any], at: int = CUT) -> dict[str, Any]:
    """A tokenizer.json without the added tokens from id `at` on."""
    return {**tokenizer, "added_tokens": [token for token in tokenizer["added_tokens"] if token["id"] < at]}


def check(tokenizer: dict[str, Any]) -> None:
    """Refuse a tokenizer.json that is not Qwen2.5's.

    Raises:
        UserError: another number of entries, or a special token with another id.
    """
    entries = len(tokenizer["model"]["vocab"])
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    wrong = [f"{name} is {ids.get(name)}, not {index}" for name, index in ADDED.items() if ids.get(name) != index]
    if entries != ENTRIES or len(ids) != CUT - ENTRIES or wrong:
        raise UserError(
            f"the tokenizer has {entries:,} entries and {len(ids)} added tokens, Qwen2.5's has {ENTRIES:,} and "
            f"{CUT - ENTRIES}{''.join(f'; {line}' for line in wrong)}; delete the folder of downloads and fetch it again"
        )


def save(source: Path, folder: Path) -> None:
    """Write the files of Qwen2.5's tokenizer to `folder`, from Qwen3's in `source`.

    Raises:
        UserError: the result is not Qwen2.5's (`check`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = cut(json.loads((source / "tokenizer.json").read_text(encoding="utf-8")))
    check(tokenizer)
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = config.get("added_tokens_decoder", {})
    config["added_tokens_decoder"] = {index: token for index, token in added.items() if int(index) < CUT}
    config.pop("chat_template", None)
    merges = tokenizer["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    _write(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    _write(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))
    _write(folder / "vocab.json", json.dumps(tokenizer["model"]["vocab"], ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *lines]) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
