"""`matches` on a table of nasty answers, and the task reward's parts."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo.response import parse
from fgrpo.types import Sample
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load
from rewards.task import matches

LR = ("left", "right")
CASES = [
    # answer, gold, choices, verdict
    ("left", "left", LR, True),
    ("Left.", "left", LR, True),
    (" LEFT ", "left", LR, True),
    ("A", "left", LR, True),
    ("a", "left", LR, True),
    ("(A)", "left", LR, True),
    ("A.", "left", LR, True),
    ("（Ａ）", "left", LR, True),
    ("A. left", "left", LR, True),
    ("(a) Left.", "left", LR, True),
    ("A: left", "left", LR, True),
    ("left (A)", "left", LR, True),
    ("**left**", "left", LR, True),
    ("not left", "left", LR, False),
    ("right", "left", LR, False),
    ("B", "left", LR, False),
    ("A. right", "left", LR, False),
    ("B. left", "left", LR, False),
    ("left or right", "left", LR, False),
    ("left left", "left", LR, False),
    ("to the left", "left", LR, False),
    ("lef", "left", LR, False),
    ("leftmost", "left", LR, False),
    ("AB", "left", LR, False),
    ("C", "left", LR, False),
    ("", "left", LR, False),
    (".", "left", LR, False),
    (None, "left", LR, False),
    ("left\u200b", "left", LR, True),
    # numbers are not made of punctuation
    ("-5", "5", ("5", "-5"), False),
    ("−5", "-5", ("5", "-5"), True),
    ("2.5", "25", ("25", "2.5"), False),
    ("2.5", "2.5", ("25", "2.5"), True),
    ("2.5.", "2.5", ("25", "2.5"), True),
    (".5", "5", ("5", ".5"), False),
    ("1/2", "12", ("12", "1/2"), False),
    ("1,000", "1000", ("1000", "1"), False),
    # options that look like letters: the text wins over the letter
    ("A", "A", ("B", "A"), True),
    ("B", "A", ("B", "A"), False),
    ("B", "vitamin", ("vitamin", "B"), False),
    ("vitamin B", "vitamin", ("vitamin B", "vitamin"), False),
    # options that differ in punctuation alone
    ("it's", "its", ("its", "it's"), False),
    ("its", "its", ("its", "it's"), True),
    # signs as options
    ("<", "<", ("<", ">"), True),
    (">", "<", ("<", ">"), False),
    # gold as a letter, as some data sets have it
    ("right", "(B)", LR, True),
    ("B", "B", LR, True),
    ("left", "B", LR, False),
    # free-form gold
    ("Two.", "two", (), True),
    ("A", "two", (), False),
    # other scripts
    ("左", "左", ("左", "右"), True),
    ("不是左", "左", ("左", "右"), False),
    ("the red circle", "the red circle", ("the red circle", "the blue square"), True),
    ("red circle", "the red circle", ("the red circle", "the blue square"), False),
]


@pytest.mark.parametrize("answer", ["<5", "< 5", "≥5", "≠ 5", "¬5", "±5"])
def test_a_sign_that_compares_is_no_punctuation(answer: str) -> None:
    assert not matches(answer, "5", ()) and not matches(answer, "5", ("4", "5"))
    assert matches("5.", "5", ()) and matches("= 5", "5", ("4", "5"))


@pytest.mark.parametrize(("answer", "gold", "choices", "verdict"), CASES)
def test_matches(answer: str | None, gold: str, choices: tuple[str, ...], verdict: bool) -> None:
    assert matches(answer, gold, choices) is verdict


@given(
    st.lists(st.text(alphabet="abcdefgh ", min_size=2).filter(lambda t: len(t.split()) > 0), min_size=2, max_size=6),
    st.data(),
)
def test_at_most_one_option_is_meant(choices: list[str], data: st.DataObject) -> None:
    choices = list({" ".join(c.split()): c for c in choices}.values())
    answer = data.draw(
        st.sampled_from([*choices, "A", "b", "(C)", *(f"{chr(65 + i)}. {c}" for i, c in enumerate(choices))])
    )
    assert sum(matches(answer, gold, choices) for gold in choices) <= 1


@given(st.text(), st.text(), st.lists(st.text(), max_size=4))
def test_no_text_makes_it_raise(answer: str, gold: str, choices: list[str]) -> None:
    matches(answer, gold, choices)


ROWS = [
    ("<think>a</think><answer>left</answer>", 2, 1, 1),
    ("<think>a</think><answer>right</answer>", 1, 1, 0),
    ("<answer>left</answer>", 1, 0, 1),
    ("<think>a</think><answer>left</answer> <answer>left</answer>", 0, 0, 0),
    ("left", 0, 0, 0),
]


def test_reward(no_judge: JudgeSet) -> None:
    sample = Sample("sat/train/0", (), "Is it left or right?", LR, "left")
    items = [RewardItem(str(i), sample, parse(text)) for i, (text, *_) in enumerate(ROWS)]
    scores = asyncio.run(load("task")(items, RewardContext(no_judge, mask="correct")))
    assert [(s.value, s.detail["format"], s.detail["accuracy"]) for s in scores] == [tuple(row[1:]) for row in ROWS]
