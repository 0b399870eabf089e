"""The oracle's verdicts: true sentences pass, planted errors of every kind do not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniworld import oracle
from miniworld import questions as qs
from miniworld.language import parse_question
from miniworld.planted import CONTROLS, ERRORS, plant
from miniworld.render import render
from miniworld.scene import COLORS, Scene, Thing

SCENES = 2000

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
    wrong = "The red circle is at <bbox>[60,40,84,64]</bbox>."
    assert verdict(statement, [statement, wrong]) == "INCORRECT"  # a false box is no evidence
    close = "The red circle is at <bbox>[8,8,20,24]</bbox>."
    assert verdict(BOX, [BOX, close]) == "INCORRECT"  # nothing makes the same box new


def test_repetition_in_other_words() -> None:
    statement = "The red circle is left of the blue square."
    for again in (
        "So, the red circle is to the left of the blue square",
        "In the first picture, the red circle is left of the blue square.",
        "The red circle is not right of the blue square.",
    ):
        assert verdict(again) == "CORRECT" and verdict(again, [statement]) == "INCORRECT"
    above, behind = (
        "The red circle is above the blue square.",
        "Seen from behind, the red circle is above the blue square.",
    )
    assert verdict(behind) == "CORRECT" and verdict(behind, [above]) == "INCORRECT"
    asked = "Is the red circle nearer to the blue square or the green triangle?"
    short = "The red circle is nearer to the blue square."
    assert (
        verdict("The red circle is nearer to the blue square than the green triangle.", [short], asked) == "INCORRECT"
    )
    other_view = "In the second picture, the red circle is left of the blue square."
    label, _ = oracle.judge_sentence([SCENE, SCENE], QUESTION, [statement, "In the first picture, " + BOX], statement)
    assert label == "INCORRECT"  # no picture is named: the last one is meant, and that box lies in the first
    assert oracle.judge_sentence([SCENE, SCENE], QUESTION, [statement], other_view)[0] == "INCORRECT"


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


def test_two_thousand_scenes_with_planted_errors() -> None:
    """Every kind of error, over all families, gets the verdict that the scene dictates: all sentences, and the answer."""
    rng = random.Random("planted")
    asked = [qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng) for n in range(SCENES)]
    judged: Counter[str] = Counter()
    for kind in (*ERRORS, *CONTROLS):
        families: Counter[str] = Counter()
        for q in asked:
            made = plant(kind, q, rng)
            said = made.sentences
            labels = tuple(oracle.judge_sentence(q.scenes, q.text, said[:i], s)[0] for i, s in enumerate(said))
            holds, why = oracle.judge_conclusion(q.text, made.think, made.answer, q.choices)
            assert labels == made.labels, (kind, q.text, said, made.labels)
            assert holds == made.consistent, (kind, q.text, said, made.answer, why)
            families[q.family] += 1
            judged.update(labels[i] for i in made.places)
        assert sum(families.values()) == SCENES and min(families.values()) == SCENES // len(qs.FAMILIES)
    assert min(judged[label] for label in ("CORRECT", "INCORRECT", "SKIP")) > SCENES


def test_each_kind_of_error_differs_from_the_truth_as_it_says() -> None:
    rng = random.Random("kinds")
    for n in range(400):
        q = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        made = {kind: plant(kind, q, rng) for kind in (*ERRORS, *CONTROLS)}
        for kind in (
            "wrong_object",
            "wrong_attribute",
            "wrong_relation",
            "wrong_box",
            "repeated_claim",
            "contradiction",
        ):
            assert "INCORRECT" in made[kind].labels and {made[kind].labels[i] for i in made[kind].places} == {
                "INCORRECT"
            }
        for kind in ("true", "imprecise_box", "repeated_with_evidence", "flipped_answer", "no_conclusion"):
            assert set(made[kind].labels) == {"CORRECT"}, kind
        assert set(made["pure_filler"].labels) == {"SKIP"}
        inconsistent = {kind for kind, m in made.items() if not m.consistent}
        assert inconsistent - {"wrong_object"} == {"flipped_answer", "pure_filler", "no_conclusion", "contradiction"}
        assert made["flipped_answer"].sentences == made["true"].sentences and made["flipped_answer"].answer != q.answer
        right = {kind for kind, m in made.items() if m.answer == q.answer}
        assert right >= set(made) - {"flipped_answer", "wrong_relation"}


def test_the_truth_can_be_read_off_the_pixels() -> None:
    """A second opinion on the scenes: things are found by their colour in the picture, and the question answered from that."""
    rng = random.Random("pixels")
    for n in range(240):
        q = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        seen = [boxes_by_color(scene) for scene in q.scenes]
        for scene, boxes in zip(q.scenes, seen, strict=True):
            assert set(boxes) == {t.color for t in scene.things}
            for t in scene.things:
                assert np.abs(np.array(boxes[t.color]) - np.array(t.box)).max() <= 2  # ticks are drawn over the things
        at = [{name: middle(boxes[name.split()[0]]) for name in q.targets} for boxes in seen]
        here = at[q.image_index or 0]
        if q.family == "count":
            noun = q.text.split()[2]
            assert noun != "things" or q.answer == ("zero", "one", "two", "three", "four")[len(seen[0])]
        elif q.family == "moved":
            assert q.answer == ("left" if at[1][q.targets[0]][0] < at[0][q.targets[0]][0] else "right")
        elif q.family == "nearer":
            a, b, c = (np.array(here[name]) for name in q.targets)
            assert q.answer == q.targets[1 if np.hypot(*(a - b)) < np.hypot(*(a - c)) else 2]
        elif q.family == "depth":
            a, b = (seen[0][name.split()[0]] for name in q.targets)
            assert q.answer == ("closer" if b[2] - b[0] < a[2] - a[0] else "farther")
        else:
            (ax, ay), (bx, by) = (here[name] for name in q.targets)
            word = ("left" if ax < bx else "right") if q.axis == "hrel" else ("above" if ay < by else "below")
            assert q.answer == ({"left": "right", "right": "left"}[word] if q.family == "behind" else word)


def boxes_by_color(scene: Scene) -> dict[str, tuple[int, int, int, int]]:
    pixels = np.asarray(render(scene))
    found = {}
    for color, rgb in COLORS.items():
        rows, columns = np.nonzero((pixels == rgb).all(axis=2))
        if len(rows):
            found[color] = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return found


def middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


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
