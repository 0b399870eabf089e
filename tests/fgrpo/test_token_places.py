"""Which tokens wrote the answer: for the shipped tokenizer, and for one whose tokens cut characters in pieces."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fgrpo.policy.token_places import token_range
from fgrpo.response import answer_place, parse

SHIPPED = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"


@pytest.fixture(scope="module")
def by_bytes() -> Any:
    """One token per byte, two merges, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*alphabet, ">n", "e<", "<end>"])}
    made = Tokenizer(models.BPE(vocabulary, [(">", "n"), ("e", "<")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def answered(tokenizer: Any, ids: list[int]) -> tuple[str, str]:
    """The answer of the decoded text, and what the tokens of its range decode to."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    place = answer_place(text)
    assert place is not None and text[slice(*place)] == parse(text).answer
    found = token_range(tokenizer, ids, text, place)
    assert found is not None
    return text[slice(*place)], tokenizer.decode(ids[slice(*found)])


def test_characters_of_several_tokens(by_bytes: Any) -> None:
    text = "<think>é 🙂</think><answer> nä🙂ve </answer>"
    ids = [*by_bytes(text)["input_ids"], by_bytes.eos_token_id]
    assert answered(by_bytes, ids) == ("nä🙂ve", "nä🙂ve")


def test_a_token_of_two_parts_counts_for_both(by_bytes: Any) -> None:
    """`>n` ends the tag and begins the answer, `e<` ends the answer and begins the tag."""
    ids = [*by_bytes("<think>x</think><answer>naive</answer>")["input_ids"], by_bytes.eos_token_id]
    assert answered(by_bytes, ids) == ("naive", ">naive<")


def test_tokens_that_the_tokenizer_would_not_choose(by_bytes: Any) -> None:
    ids = [by_bytes.convert_tokens_to_ids(c) for c in "<think>x</think><answer>naive</answer>"]
    assert answered(by_bytes, ids) == ("naive", "naive")


def test_special_tokens_between_have_no_characters(by_bytes: Any) -> None:
    eos = by_bytes.eos_token_id
    ids = [i for token in by_bytes("<think>x</think><answer>b c</answer>")["input_ids"] for i in (eos, token, eos)]
    assert answered(by_bytes, ids)[1].replace("<end>", "") == "b c"


def test_another_text_has_no_places(by_bytes: Any) -> None:
    ids = by_bytes("<answer>a</answer>")["input_ids"]
    assert token_range(by_bytes, ids, "<answer>b</answer>", (8, 9)) is None
    assert token_range(by_bytes, ids, "<answer>a</answer>", (8, 8)) == (0, 0)


def test_the_shipped_tokenizer() -> None:
    """Random words around the answer: its range decodes to the answer, up to blanks at its ends."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    words = ["the", "red", "circle", "is", "left", "of", "blue", "square", ".", "[1,2,3,4]", "above"]
    rng = random.Random(0)
    for _ in range(50):
        trace, answer = (" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(2))
        ids = [*tokenizer(f"<think>{trace}</think><answer>{answer}</answer>")["input_ids"], tokenizer.eos_token_id]
        text, written = answered(tokenizer, ids)
        assert written.strip() == text.strip() and text
