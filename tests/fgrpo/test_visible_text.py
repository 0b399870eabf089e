"""Text as a reader sees it, in one form for answers, judges and traces."""

from __future__ import annotations

import pytest

from fgrpo.visible_text import as_seen, latin_lookalikes, visible, with_line_feeds
from judges.requests import fence
from rewards.content import visible as visible_trace

HIDDEN = "\u200b\u00ad\u2060\ufeff\U000e0041\ue000"


@pytest.mark.parametrize("read", [as_seen, visible, visible_trace, lambda text: fence(text)[1:-1]])
def test_what_no_reader_sees_is_gone_everywhere(read: object) -> None:
    assert callable(read)
    assert read(f"A{HIDDEN} Ｂ\u0301é") == "A B\u0301é"


def test_line_ends() -> None:
    text = "a\r\nb\rc\u2028d\n"
    assert with_line_feeds(text) == "a\nb\nc\nd\n"
    assert visible(f"é{text}") == "éa\nb\nc\nd\n" and visible_trace(text) == "a\nb\nc\nd\n"
    assert as_seen(text) == "a\nbcd\n"  # what a judge receives


def test_look_alikes_in_words_of_mixed_scripts() -> None:
    assert latin_lookalikes("CОRRECT leаve 3 СТОП слева") == "CORRECT leave 3 СТОП слева"
