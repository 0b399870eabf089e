"""Which tokens of a completion wrote a part of its text.

A token's place begins where the decoded text of the tokens before it ends, and ends where the text with this token ends. So the
sampled tokens count, not those that the tokenizer would make of the text. A token that holds characters of two parts counts for both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any


def token_range(tokenizer: Any, ids: Sequence[int], text: str, place: tuple[int, int]) -> tuple[int, int] | None:
    """The tokens [first, last) of `ids` whose characters overlap `text[start:end]`; empty for an empty place.

    Args:
        ids: the completion's, special tokens among them, which have no characters.
        text: what they were decoded to.
        place: (start, end).

    Returns:
        None: `ids` do not decode to `text`, so places in one say nothing about the other.
    """
    if tokenizer.decode(ids, skip_special_tokens=True) != text:
        return None
    start, end = place
    if start >= end:
        return 0, 0
    lengths = _Lengths(tokenizer, ids)
    # lengths[n] characters are written by the first n tokens: the first token that goes beyond `start`, and the one that
    # reaches `end`.
    first = bisect_right(lengths, start) - 1
    last = bisect_left(lengths, end)
    return first, last


class _Lengths(Sequence[int]):
    """Number of characters that the first n tokens decode to, for n from 0 to their number; never decreasing."""

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self.tokenizer, self.ids = tokenizer, list(ids)

    def __len__(self) -> int:
        return len(self.ids) + 1

    def __getitem__(self, count: Any) -> Any:
        if not isinstance(count, int):
            raise TypeError("one length at a time")
        return len(self.tokenizer.decode(self.ids[:count], skip_special_tokens=True)) if count else 0
