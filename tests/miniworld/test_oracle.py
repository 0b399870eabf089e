"""The oracle's verdicts: true sentences pass, planted errors of every kind do not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniworld import oracle
from miniworld import questions as qs
from miniworld.language import parse_question
from miniworld.scene import Scene, Thing

RED = Thing("red", "circle", (4, 8, 20, 24))
BLUE = Thing("blue", "square", (60, 40, 84, 64))
GREEN = Thing("green", "triangle", (84, 92, 96, 104))
SCENE = Scene((RED, BLUE, GREEN))
QUESTION = "Is the red circle left or right of the blue square?"
BOX = "The red circle is at <bbox>[4,8,20,24]</bbox>."


def verdict(sentence: str, context: list[str] | None = None, question: str = QUESTION) -> str:
    return oracle.judge_sentence([SCENE], question, context or [], sentence)[0]


@pytest.mark.parametrize(
    "sentence",
    [
        BOX,
        "the  RED circle is at <bbox>[ 4, 8 ,20,24 ]</bbox> .",
        "The red circle is at <bbox>[8,8,20,24]</bbox>.",  # IoU .75
        "The red circle is left of the blue square.",
        "So, the red circle is to the left of the blue square",
        "The blue square is right of the red circle.",
        "The red circle is not right of the blue square.",
        "The blue square is below the red circle.",
        "The blue square is closer than the red circle.",
        "Seen from behind, the red circle is right of the blue square.",
        "The red circle is nearer to the blue square than the green triangle.",
        "There is one circle.",
        "There are 3 things.",
        "There is a red circle.",
    ],
)
def test_true_sentences(sentence: str) -> None:
    assert verdict(sentence) == "CORRECT"


@pytest.mark.parametrize(
    "sentence",
    [
        "The red circle is at <bbox>[60,40,84,64]</bbox>.",  # another thing's box
        "The red circle is at <bbox>[0,0,112,112]</bbox>.",  # IoU .02
        "The red circle is at <bbox>[20,24,4,8]</bbox>.",
        "The red circle is at <bbox>[4,8,20]</bbox>.",
        "The red circle is right of the blue square.",
        "The red circle is not left of the blue square.",
        "The red circle is closer than the blue square.",
        "Seen from behind, the red circle is left of the blue square.",
        "The red square is left of the blue square.",  # no such thing
        "The pink circle is left of the blue square.",  # no such colour
        "The red circle is left of the red circle.",
        "The green triangle is nearer to the red circle.",
        "There are two circles.",
        "There are three circles and more.",
        "There is a purple square.",
        "In the second picture, the red circle is left of the blue square.",  # there is one picture
        "The red circle moved left.",
        "The red circle is left.",
        "Look at the yellow triangle.",  # not there
        "The red circle is left of the blue square. The red circle is below the blue square.",
    ],
)
def test_planted_errors(sentence: str) -> None:
    assert verdict(sentence) == "INCORRECT"


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "...",
        "Wait, this seems off. Let's try something else.",
        "Let me look at the red circle.",
        "The answer is left.",
    ],
)
def test_no_claim(sentence: str) -> None:
    assert verdict(sentence) == "SKIP"


def test_repetition_needs_new_evidence() -> None:
    statement = "The red circle is left of the blue square."
    assert verdict(BOX, [BOX]) == "INCORRECT"
    assert verdict(statement, [BOX, statement]) == "INCORRECT"
    assert verdict("The blue square is right of the red circle.", [statement]) == "INCORRECT"  # the same, turned round
    assert verdict(statement, [statement, BOX]) == "CORRECT"
    assert verdict(statement, [BOX, statement, BOX]) == "INCORRECT"  # that box was no news


@pytest.mark.parametrize("family", qs.FAMILIES)
def test_every_family_agrees_with_its_truth(family: str) -> None:
    rng = random.Random(f"oracle/{family}")
    for _ in range(150):
        q = qs.make(family, rng)
        said = qs.steps(q)
        asked = parse_question("Look.\n" + q.text + "\nA. left B. right")
        assert asked is not None and asked.family == family and asked.options == q.choices
        for i, sentence in enumerate(said):
            assert oracle.judge_sentence(q.scenes, q.text, said[:i], sentence)[0] == "CORRECT"
        for word in q.choices:
            statement = qs.conclusion(q, word)
            label, _ = oracle.judge_sentence(q.scenes, q.text, said[:-1], statement)
            assert label == ("CORRECT" if word == q.answer else "INCORRECT")
            think = "\n".join([*said[:-1], statement])
            assert oracle.stated_answer(q.text, think) == word
            for answer in q.choices:
                assert oracle.judge_conclusion(q.text, think, answer, q.choices)[0] == (answer == word)


def test_conclusion_needs_a_statement_on_what_is_asked() -> None:
    choices = ("left", "right")

    def follows(think: str, answer: str) -> bool:
        return oracle.judge_conclusion(QUESTION, think, answer, choices)[0]

    assert not follows(BOX, "left")
    assert not follows("The red circle is above the blue square.", "left")  # another axis
    assert not follows("The red circle is left of the green triangle.", "left")  # another pair
    assert not follows("Seen from behind, the red circle is left of the blue square.", "left")
    assert follows("The blue square is right of the red circle.", "left")
    assert follows("The red circle is left of the blue square.", "A")
    assert follows("The red circle is left of the blue square.", "(a) left")
    assert not follows("The red circle is left of the blue square.", "B")
    assert not follows("The red circle is left of the blue square.", "up")
    both = "The red circle is right of the blue square.\nThe red circle is left of the blue square."
    assert not follows(both, "left") and not follows(both, "right")


def test_a_correction_takes_back_what_stood_before() -> None:
    cue = "\nWait, this seems off. Let's try something else.\n"
    think = "The red circle is right of the blue square." + cue + "The red circle is left of the blue square."
    assert oracle.judge_conclusion(QUESTION, think, "left", ("left", "right"))[0]
    assert oracle.stated_answer(QUESTION, think) == "left"
    gone = "The red circle is left of the blue square." + cue
    assert not oracle.judge_conclusion(QUESTION, gone, "left", ("left", "right"))[0]
    assert oracle.stated_answer(QUESTION, gone) is None


PIECES = st.sampled_from(
    [*"\n.,?! ²٣[]<>", "<bbox>[", "]</bbox>", "the red circle", " is left of ", "there are 9 things"]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.text())
def test_no_text_makes_the_oracle_raise(text: str, question: str) -> None:
    calls: list[Callable[[str], object]] = [
        lambda asked: oracle.judge_sentence([SCENE], asked, [text], text),
        lambda asked: oracle.judge_conclusion(asked, text, text, ("left", "right")),
        lambda asked: oracle.stated_answer(asked, text),
    ]
    for call in calls:
        call(question)
        call(QUESTION)
        call("How many circles are there, one, two or three?")
