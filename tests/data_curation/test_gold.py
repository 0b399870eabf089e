"""The final answer of a reply that annotates a question: phrases of real replies, and the answer that they state."""

from __future__ import annotations

import pytest

from data_curation.gold import gold_index, is_open, read_gold

PHRASES = [
    ("<think>x</think>\n<answer>left</answer>", "left"),
    ("<answer>a</answer> no, <answer>b</answer>", ""),
    ("<answer>a</answer>\n<answer>A.</answer>", "A"),
    ("<think><answer>a</answer>?</think><answer>b</answer>", "b"),
    ("The hat is red.\n\nHope this helps!", "The hat is red"),
    ("red\nLet me know if you have questions.\nThank you!", "red"),
    ("Thank you", "Thank you"),
    ("What is the answer? It's red.", "It's red"),
    ("Is it red?", "Is it red?"),
    ("the answer is red because the bus is red", "red"),
    ("The answer is red, as seen in the box", "red"),
    ("The answer is left since it is nearer.", "left"),
    ("The answer is the same as the other", "the same as the other"),
    ("The answer is because of the rain", "because of the rain"),
    ("<ANSWER> B. </ANSWER>", "B"),
    ("<answer>The answer is red.</answer>", "red"),
    ("<answer>\\boxed{B}</answer>", "B"),
    ("The answer to the question is red.", "red"),
    ("the answer to the question is red", "red"),
    ("So the answer to this question is: **dark red**.", "dark red"),
    ("The answer to the user's question is 'red'.", "red"),
    ("Therefore, the final answer is \\boxed{B}.", "B"),
    ("Thus \\boxed{\\text{blue car}}", "blue car"),
    ("$\\boxed{3}$", "3"),
    ("First \\boxed{A}, but then \\boxed{C}", "C"),
    ("<|begin_of_box|>B<|end_of_box|>", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B)", "(B)"),
    ("The correct option is B. left", "B. left"),
    ("The correct answer is option C.", "C"),
    ("Answer: 3", "3"),
    ("Answer： 3", "3"),
    ("**Answer:** 3.5", "3.5"),
    ("Final Answer: **yes**", "yes"),
    ("The answer is red. This matches the picture.", "red"),
    ("The answer is red.\n\nThis matches the picture.", "red"),
    ("The answer would be on the table.", "on the table"),
    ("The answer is: St. John's", "St. John's"),
    ("It lies on top.\nday", "day"),
    ("It is red.\n**Red.**", "Red"),
    ("The man can answer that it is red", "The man can answer that it is red"),
    ("<think>no end, the answer is red", ""),
    ("<think>x</think>", ""),
    ("", ""),
    ("\n \n", ""),
]


@pytest.mark.parametrize(("reply", "answer"), PHRASES)
def test_phrases(reply: str, answer: str) -> None:
    assert read_gold(reply) == answer


@pytest.mark.parametrize(
    "answer",
    ["either red or blue", "red or blue", "not red", "not visible", "It cannot be determined", "unclear", "maybe red"],
)
def test_open_answers_are_no_gold(answer: str) -> None:
    assert is_open(answer)


@pytest.mark.parametrize(
    "answer", ["red", "no", "orange", "a doorknob", "nothing", "3", "no parking", "The hat is red"]
)
def test_closed_answers(answer: str) -> None:
    assert not is_open(answer)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("(b)", 1),
        ("B.", 1),
        ("right", 1),
        ("Right.", 1),
        ("B. right", 1),
        ("A. right", None),
        ("up", None),
        ("D", None),
    ],
)
def test_gold_among_options(answer: str, index: int | None) -> None:
    assert gold_index(answer, ("left", "right", "ahead")) == index


@pytest.mark.parametrize("part", ["<answer>", "</answer>", "<|begin_of_box|>", "\\boxed{", "? ", "because "])
def test_long_replies_of_one_part_are_read_in_linear_time(part: str) -> None:
    assert read_gold(part * 50_000 + "\nred") in ("red", "")
