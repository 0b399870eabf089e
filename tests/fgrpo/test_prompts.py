"""Prompts are rendered in one pass."""

from __future__ import annotations

import re

import pytest

from fgrpo import prompts
from fgrpo.errors import UserError
from fgrpo.schema import Policy
from fgrpo.types import Frame, Sample


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
    policy = Policy(box_tag="box", box_frame="thousand")
    text = prompts.user_text(Sample("a/b/1", (), "Q?", ("l", "r"), "l"), prompts.read_for(policy, name))
    assert "Q?" in text and ("<box>[x1,y1,x2,y2]</box>" in text) == (name in ("think", "teacher"))


def test_prompts_ask_for_the_form_and_frame_that_are_read() -> None:
    """In the paper's frame with the words of before; nothing of a question is looked at."""
    frames: tuple[Frame, ...] = ("model", "thousand", "unit")
    for name in ("think", "teacher"):
        texts = {f: prompts.read_for(Policy(box_tag="bbox", box_frame=f), name) for f in frames}
        assert all("<bbox>[x1,y1,x2,y2]</bbox> in " in text and "{box}" not in text for text in texts.values())
        assert "absolute pixel" in texts["model"] and "from 0 to 1000" in texts["thousand"]
        assert re.search(r"from 0 to 1\b", texts["unit"])
        assert "absolute pixel" not in texts["thousand"] + texts["unit"]
        assert '{"bbox_2d": [x1, y1, x2, y2]}' in prompts.read_for(Policy(box_tag="bbox_2d", box_frame="model"), name)
    asked = prompts.user_text(Sample("a/b/1", (), "{box}?", (), "l"), prompts.with_boxes("{question}", "bbox", "unit"))
    assert asked == "{box}?"


def test_no_stage_reads_a_prompt_without_its_policys_form() -> None:
    """`read` of a configured prompt would leave `{box}` in it."""
    root = prompts.FOLDER.parents[1]
    packages = ("data_curation", "eval", "fgrpo", "mcts", "ops", "perf", "rl", "sft")
    found = re.compile(r"prompts\.read\(\w+\.prompts\.")
    bare = [str(p) for package in packages for p in (root / package).rglob("*.py") if found.search(p.read_text())]
    assert not bare
