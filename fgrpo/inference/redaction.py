"""Known keys are replaced wherever text of others is stored or shown: error messages, completions, verdicts.

A client registers its key, and of its address's query the values of parameters that are named like one. Shorter values ("EMPTY",
"unused", "secret") are placeholders and words, which a model's own text may hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SHORTEST = 12  # characters of a key that is replaced
HIDDEN = "***"
_KNOWN: set[str] = set()
_LIKE_A_KEY = re.compile(
    r"(?:key|token|sig|signature|secret|code|password|passwd|pwd|auth|authorization|credentials?|jwt|sas)$",
    re.IGNORECASE,
)


def remember(key: str) -> None:
    """Replace `key` from now on, in this process."""
    if len(key) >= SHORTEST:
        _KNOWN.add(key)


def remember_query(query: Mapping[str, str]) -> None:
    """Replace the values of those parameters of an address that are named like a key ("api_key", "sig")."""
    for name, value in query.items():
        if _LIKE_A_KEY.search(name):
            remember(value)


def redact(text: str) -> str:
    """`text` without any known key."""
    for key in sorted(_KNOWN, key=len, reverse=True):
        if key in text:
            text = text.replace(key, HIDDEN)
    return text
