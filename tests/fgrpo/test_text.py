"""Lone surrogates: cleaned where text enters, so that everything can be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.replies import read_reply
from fgrpo.text import clean
from fgrpo.types import Sample

CASES = [
    ("plain", "plain"),
    ("a\ud800b", "a\ufffdb"),
    ("\udc00", "\ufffd"),
    ("\ud83d\ude00", "\U0001f600"),  # a pair is a character
    ("\ud83dx\ude00", "\ufffdx\ufffd"),
    ("\U0001f600\ud800", "\U0001f600\ufffd"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "cleaned"), CASES)
def test_lone_surrogates_are_replaced_and_pairs_joined(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(st.characters()))
def test_cleaned_text_can_be_written(text: str) -> None:
    clean(text).encode()
    assert clean(clean(text)) == clean(text)


def test_a_reply_and_a_sample_are_clean(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "left \ud800"}
    document = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    (choice,) = read_reply(json.dumps(document).encode()).choices
    assert choice.text == "left \ufffd"
    meta = {"x\ud800": ["\udfff", {"y": "\ud800"}], "n": 1}
    sample = Sample("a/\ud800", ("p.png",), "Where \udc01?", ("\ud800", "b"), "\ud800", None, meta)
    write_jsonl(tmp_path / "x.jsonl", [sample.to_dict()])
    (row,) = read_jsonl(tmp_path / "x.jsonl")
    assert Sample.from_dict(row) == sample
    assert (sample.question, sample.choices, sample.meta["n"]) == ("Where \ufffd?", ("\ufffd", "b"), 1)
