"""Known keys are replaced wherever text of others is stored or shown: error messages, completions, verdicts.

A client registers its key and the values of its address's query. Shorter keys ("EMPTY", "none") are placeholders.
"""

from __future__ import annotations

SHORTEST = 6  # characters of a key that is replaced
HIDDEN = "***"
_KNOWN: set[str] = set()


def remember(key: str) -> None:
    """Replace `key` from now on, in this process."""
    if len(key) >= SHORTEST:
        _KNOWN.add(key)


def redact(text: str) -> str:
    """`text` without any known key."""
    for key in sorted(_KNOWN, key=len, reverse=True):
        if key in text:
            text = text.replace(key, HIDDEN)
    return text
