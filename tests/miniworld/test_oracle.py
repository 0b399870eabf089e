"""The oracle's verdicts: true sentences pass, planted errors of every kind fail."""

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
        "In the second picture, the red circle is left of the blue square.",  # there is one image
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
    assert (
        verdict("The blue square is right of the red circle.", [statement]) == "INCORRECT"
    )  # the same claim, reversed
    assert verdict(statement, [statement, BOX]) == "CORRECT"
    assert verdict(statement, [BOX, statement, BOX]) == "INCORRECT"  # the box was not new
    wrong = "The red circle is at <bbox>[60,40,84,64]</bbox>."
    assert verdict(statement, [statement, wrong]) == "INCORRECT"  # a false box is no evidence
    close = "The red circle is at <bbox>[8,8,20,24]</bbox>."
    assert verdict(BOX, [BOX, close]) == "INCORRECT"  # the same box is never new


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
    parsed = "Is the red circle nearer to the blue square or the green triangle?"
    short = "The red circle is nearer to the blue square."
    assert (
        verdict("The red circle is nearer to the blue square than the green triangle.", [short], parsed) == "INCORRECT"
    )
    other_view = "In the second picture, the red circle is left of the blue square."
    label, _ = oracle.judge_sentence([SCENE, SCENE], QUESTION, [statement, "In the first picture, " + BOX], statement)
    assert label == "INCORRECT"  # without a named image the last one is meant, but that box is in the first
    assert oracle.judge_sentence([SCENE, SCENE], QUESTION, [statement], other_view)[0] == "INCORRECT"


@pytest.mark.parametrize("family", qs.FAMILIES)
def test_verdicts_agree_with_the_truth_of_every_family(family: str) -> None:
    rng = random.Random(f"oracle/{family}")
    for _ in range(150):
        q = qs.make(family, rng)
        sentences = qs.steps(q)
        parsed = parse_question("Look.\n" + q.text + "\nA. left B. right")
        assert parsed is not None and parsed.family == family and parsed.options == q.choices
        for i, sentence in enumerate(sentences):
            assert oracle.judge_sentence(q.scenes, q.text, sentences[:i], sentence)[0] == "CORRECT"
        for word in q.choices:
            statement = qs.conclusion(q, word)
            label, _ = oracle.judge_sentence(q.scenes, q.text, sentences[:-1], statement)
            assert label == ("CORRECT" if word == q.answer else "INCORRECT")
            think = "\n".join([*sentences[:-1], statement])
            assert oracle.stated_answer(q.text, think) == word
            for answer in q.choices:
                assert oracle.judge_conclusion(q.text, think, answer, q.choices)[0] == (answer == word)


def test_two_thousand_scenes_with_planted_errors() -> None:
    """Every kind of error in every family gets the verdict that the scene dictates, for all sentences and the answer."""
    rng = random.Random("planted")
    parsed = [qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng) for n in range(SCENES)]
    judged: Counter[str] = Counter()
    for kind in (*ERRORS, *CONTROLS):
        families: Counter[str] = Counter()
        for q in parsed:
            trace = plant(kind, q, rng)
            sentences = trace.sentences
            labels = tuple(
                oracle.judge_sentence(q.scenes, q.text, sentences[:i], s)[0] for i, s in enumerate(sentences)
            )
            holds, why = oracle.judge_conclusion(q.text, trace.think, trace.answer, q.choices)
            assert labels == trace.labels, (kind, q.text, sentences, trace.labels)
            assert holds == trace.consistent, (kind, q.text, sentences, trace.answer, why)
            families[q.family] += 1
            judged.update(labels[i] for i in trace.places)
        assert sum(families.values()) == SCENES and min(families.values()) == SCENES // len(qs.FAMILIES)
    assert min(judged[label] for label in ("CORRECT", "INCORRECT", "SKIP")) > SCENES


def test_each_kind_of_error_has_the_labels_of_its_kind() -> None:
    rng = random.Random("kinds")
    for n in range(400):
        q = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        trace = {kind: plant(kind, q, rng) for kind in (*ERRORS, *CONTROLS)}
        for kind in (
            "wrong_object",
            "wrong_attribute",
            "wrong_relation",
            "wrong_box",
            "repeated_claim",
            "contradiction",
        ):
            assert "INCORRECT" in trace[kind].labels and {trace[kind].labels[i] for i in trace[kind].places} == {
                "INCORRECT"
            }
        for kind in ("true", "imprecise_box", "repeated_with_evidence", "flipped_answer", "no_conclusion"):
            assert set(trace[kind].labels) == {"CORRECT"}, kind
        assert set(trace["pure_filler"].labels) == {"SKIP"}
        assert [trace["injection"].labels[i] for i in trace["injection"].places] == ["INCORRECT", "SKIP"]
        inconsistent = {kind for kind, m in trace.items() if not m.consistent}
        certain = {"flipped_answer", "pure_filler", "no_conclusion", "contradiction", "injection"}
        assert inconsistent - {"wrong_object"} == certain
        assert (
            trace["flipped_answer"].sentences == trace["true"].sentences and trace["flipped_answer"].answer != q.answer
        )
        right = {kind for kind, m in trace.items() if m.answer == q.answer}
        assert right >= set(trace) - {"flipped_answer", "wrong_relation", "injection"}


def test_the_truth_can_be_derived_from_the_pixels() -> None:
    """An independent check: locate things by colour in the image and answer the question from that."""
    rng = random.Random("pixels")
    for n in range(240):
        q = qs.make(qs.FAMILIES[n % len(qs.FAMILIES)], rng)
        boxes_per_image = [boxes_by_color(scene) for scene in q.scenes]
        for scene, boxes in zip(q.scenes, boxes_per_image, strict=True):
            assert set(boxes) == {t.color for t in scene.things}
            for t in scene.things:
                assert np.abs(np.array(boxes[t.color]) - np.array(t.box)).max() <= 2  # ticks are drawn over the things
        at = [{name: middle(boxes[name.split()[0]]) for name in q.targets} for boxes in boxes_per_image]
        here = at[q.image_index or 0]
        if q.family == "count":
            noun = q.text.split()[2]
            assert noun != "things" or q.answer == ("zero", "one", "two", "three", "four")[len(boxes_per_image[0])]
        elif q.family == "moved":
            assert q.answer == ("left" if at[1][q.targets[0]][0] < at[0][q.targets[0]][0] else "right")
        elif q.family == "nearer":
            a, b, c = (np.array(here[name]) for name in q.targets)
            assert q.answer == q.targets[1 if np.hypot(*(a - b)) < np.hypot(*(a - c)) else 2]
        elif q.family == "depth":
            a, b = (boxes_per_image[0][name.split()[0]] for name in q.targets)
            assert q.answer == ("closer" if b[2] - b[0] < a[2] - a[0] else "farther")
        else:
            (ax, ay), (bx, by) = (here[name] for name in q.targets)
            word = ("left" if ax < bx else "right") if q.axis == "hrel" else ("above" if ay < by else "below")
            assert q.answer == ({"left": "right", "right": "left"}[word] if q.family == "behind" else word)


def boxes_by_color(scene: Scene) -> dict[str, tuple[int, int, int, int]]:
    pixels = np.asarray(render(scene))
    boxes = {}
    for color, rgb in COLORS.items():
        rows, columns = np.nonzero((pixels == rgb).all(axis=2))
        if len(rows):
            boxes[color] = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return boxes


def middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def test_a_conclusion_requires_a_relevant_statement() -> None:
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


def test_a_correction_retracts_earlier_statements() -> None:
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
        lambda parsed: oracle.judge_sentence([SCENE], parsed, [text], text),
        lambda parsed: oracle.judge_conclusion(parsed, text, text, ("left", "right")),
        lambda parsed: oracle.stated_answer(parsed, text),
    ]
    for call in calls:
        call(question)
        call(QUESTION)
        call("How many circles are there, one, two or three?")
