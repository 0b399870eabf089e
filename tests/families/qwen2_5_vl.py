"""A tiny Qwen2.5-VL: the shipped backbone of the miniature world."""

from __future__ import annotations

import shutil
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"


def build(folder: Path) -> Path:
    """Write configuration, weights, tokenizer and processor to `folder`; returns it."""
    return Path(shutil.copytree(SHIPPED, folder, dirs_exist_ok=True))
