"""Free-form answers as multiple choice: alternatives in the question, closed kinds, answers of the same kind."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_curation.multiple_choice import AnswerPool, alternatives, clean, make_choices


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is the red circle left or right of the blue square?", "left", {"left", "right"}),
        ("Is the man to the left or to the right of the boat?", "right", {"left", "right"}),
        ("Is the ladder on the left or right side of the cat?", "Left", {"Left", "right"}),
        (
            "Is the red circle nearer to the blue square or the green triangle?",
            "green triangle",
            {"blue square", "green triangle"},
        ),
        ("How many circles are there, one, two or three?", "two", {"one", "two", "three"}),
        ("How many circles are there, three, two, or one?", "three", {"one", "two", "three"}),
        ("What color is the car, red or blue?", "red", {"red", "blue"}),
        ("Is it red, white or blue?", "white", {"red", "white", "blue"}),
        ("Is the bag made of leather or of cloth?", "silk", set()),
        ("What is the man holding?", "umbrella", set()),
        ("Is it a dog or a dog?", "dog", set()),
        ("", "", set()),
    ],
)
def test_alternatives_that_the_question_names(question: str, answer: str, expected: set[str]) -> None:
    assert set(alternatives(question, answer)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("yes", {"yes", "no"}), ("No", {"Yes", "No"}), ("true", {"true", "false"}), ("Left", {"Left", "Right"})],
)
def test_answers_with_an_opposite(answer: str, expected: set[str]) -> None:
    choices = make_choices("gqa", "Is that so?", answer, AnswerPool(), random.Random(0), 4)
    assert choices is not None and set(choices) == expected


@pytest.mark.parametrize("answer", ["3", "0", "three", "twelve", "40"])
def test_numbers_get_their_neighbours(answer: str) -> None:
    choices = make_choices("gqa", "How many?", answer, AnswerPool(), random.Random(0), 4)
    assert choices is not None and answer in choices and len(set(choices)) == 4
    if answer.isdecimal():
        assert all(abs(int(choice) - int(answer)) <= 3 and int(choice) >= 0 for choice in choices)


def test_large_option_counts_and_long_digit_strings_raise_nothing() -> None:
    choices = make_choices("gqa", "What color?", "red", AnswerPool(), random.Random(0), 40)
    assert choices is not None and len(choices) == 15
    assert make_choices("gqa", "What is the code?", "9" * 5000, AnswerPool(), random.Random(0), 4) is None


def test_distractors_come_from_questions_of_the_same_kind_first() -> None:
    pool = AnswerPool()
    for thing in ("hat", "scarf", "coat", "tie"):
        pool.add("gqa", "What is the man wearing?", thing)
    for thing in ("dog", "cat", "horse"):
        pool.add("gqa", "What is the man riding?", thing)
    pool.add("vsr", "What is the man wearing?", "helmet")
    choices = make_choices("gqa", "What is the woman wearing?", "hat", pool, random.Random(1), 4)
    assert choices is not None and set(choices) == {"hat", "scarf", "coat", "tie"}


def test_an_option_that_is_also_correct_is_never_drawn() -> None:
    pool = AnswerPool()
    for thing in ("dog", "brown dog", "puppy", "cat", "yes", "left", "red"):
        pool.add("gqa", "What is that?", thing)
    choices = make_choices("gqa", "What is that?", "dog", pool, random.Random(0), 4, also_true=("puppy",))
    assert choices is not None and set(choices) == {"dog", "cat"}


def test_none_without_any_distractor() -> None:
    assert make_choices("gqa", "What brand is it?", "Acme", AnswerPool(), random.Random(0), 4) is None


def test_the_order_depends_on_the_random_generator_only() -> None:
    def order(seed: int) -> tuple[str, ...] | None:
        return make_choices("g", "Which of the two is it, cat or dog?", "dog", AnswerPool(), random.Random(seed), 4)

    assert order(3) == order(3)
    assert {order(seed) for seed in range(20)} == {("cat", "dog"), ("dog", "cat")}


@given(st.text(max_size=60), st.text(max_size=20), st.integers(0, 9))
def test_for_any_text_the_answer_occurs_once_among_the_options(question: str, answer: str, seed: int) -> None:
    answer = clean(answer)
    pool = AnswerPool()
    pool.add("g", question, "something else")
    choices = make_choices("g", question, answer, pool, random.Random(seed), 4)
    assert choices is None or (choices.count(answer) == 1 and len(set(choices)) == len(choices) >= 2)


@pytest.mark.parametrize("part", ["a, ", "x ", "a or b, ", "'a", "or "])
def test_alternatives_of_long_questions(part: str) -> None:
    assert alternatives(part * 20_000 + "? Is it left or right", "left") == ("left", "right")
    assert alternatives(part * 20_000, "one two three") == ()
