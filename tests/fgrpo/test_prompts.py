"""Prompts are rendered in one pass."""

from __future__ import annotations

import pytest

from fgrpo import prompts
from fgrpo.errors import UserError
from fgrpo.types import Sample


def test_text_that_is_put_in_is_never_looked_at_again() -> None:
    sample = Sample("a/b/1", ("p.png",), "What does {options} or {answer} mean?", ("x", "y"), "x")
    text = prompts.user_text(sample, "{question}\n{options}")
    assert text == "What does {options} or {answer} mean?\n(A) x\n(B) y"


def test_unknown_placeholder_and_prompt() -> None:
    with pytest.raises(UserError, match=r"placeholder \{gold\}"):
        prompts.render("{gold}", question="q")
    with pytest.raises(UserError, match="did you mean 'think'"):
        prompts.read("thinc")


def test_images_come_first_and_in_order() -> None:
    content = prompts.messages(Sample("a/b/1", ("1.png", "2.png"), "q", (), "x"), "{question}")[0]["content"]
    assert [part.get("image", part.get("text")) for part in content] == ["1.png", "2.png", "q"]


@pytest.mark.parametrize("name", ["think", "direct", "teacher", "mini"])
def test_every_prompt_file_renders(name: str) -> None:
    assert "Q?" in prompts.user_text(Sample("a/b/1", (), "Q?", ("l", "r"), "l"), prompts.read(name))
