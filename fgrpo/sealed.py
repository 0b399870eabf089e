"""JSON files with a checksum of their content, so that a changed byte is noticed where no manifest records the file.

The checksum is a key of the object itself. Blanks and the order of keys do not count. A file without the key (an older version
wrote it, or its user edited it and removed the key) is read as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from fgrpo.files import write_atomic

CHECKSUM = "checksum"


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object with its checksum, atomically; NaN and infinity are errors."""
    write_atomic(path, sealed(data))


def sealed(data: Mapping[str, Any]) -> str:
    """The text of such a file."""
    plain = json.loads(json.dumps(data, allow_nan=False))  # keys as text, as they will be read
    whole = {**plain, CHECKSUM: checksum(plain)}
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """The object that `write_sealed` wrote, without its checksum.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object, or its content does not have its checksum.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not an object")
    stored = data.pop(CHECKSUM, None)
    if stored is None and any(_is_almost(key) for key in data):
        raise ValueError(f"the name of its {CHECKSUM} is damaged")
    if stored is not None and stored != checksum(data):
        raise ValueError(f"its content does not have its {CHECKSUM}; if it was edited on purpose, remove that key")
    return data


def checksum(data: Mapping[str, Any]) -> str:
    """The checksum of an object (xxh3, 128 bits) in one spelling of it."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _is_almost(key: str) -> bool:
    return len(key) == len(CHECKSUM) and sum(a != b for a, b in zip(key, CHECKSUM, strict=True)) == 1
