"""The tokenizer: single tokens for words and numbers, lossless round trip, Qwen's special tokens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniworld import questions as qs
from miniworld import tokenizer as tok

TOKENIZER = tok.build()


def length(text: str) -> int:
    return len(TOKENIZER.encode(text).ids)


@pytest.mark.parametrize("text", [*tok.words(), *tok.TAGS, " <bbox>[", "\n", *(str(v) for v in range(0, 113, 4))])
def test_one_token(text: str) -> None:
    assert length(text) == 1


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_traces_are_short_and_round_trip_without_special_tokens() -> None:
    rng = random.Random(0)
    for family in qs.FAMILIES:
        text = qs.trace(qs.make(family, rng))
        ids = TOKENIZER.encode(text).ids
        assert len(ids) <= 80 and TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert length("Wait, this seems off. Let's try something else.") <= 14


def test_steps_can_be_encoded_separately() -> None:
    """A search that extends a trace step by step sees the ids of the complete text."""
    q = qs.make("hrel", random.Random(0))
    first, *rest = qs.trace(q).split("\n")
    parts = [first + "\n", "\n".join(rest)]
    assert [i for part in parts for i in TOKENIZER.encode(part).ids] == TOKENIZER.encode("".join(parts)).ids


def test_special_tokens_exist_and_unknown_ones_raise() -> None:
    ids = [tok.token_id(TOKENIZER, t) for t in tok.SPECIAL]
    assert len(set(ids)) == len(ids) and max(ids) == TOKENIZER.get_vocab_size() - 1
    assert all(length(t) == 1 for t in tok.SPECIAL)
    with pytest.raises(KeyError):
        tok.token_id(TOKENIZER, "<|unknown|>")
