"""A claim earns once, however it is written; what differs in substance is another claim; long traces cost linear memory."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from fgrpo.response import parse
from fgrpo.types import Sample, Verdict
from judges.backends.replay import item_key
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load
from rewards.claims import claims, distinct, repeated, same_box
from rewards.semantic_grounding import GROUNDING_TASK, JUDGED_SENTENCES, GroundingItem
from rewards.sentences import Prefix

SAMPLE = Sample("sat/train/0", ("missing.png",), "Is the car left or right?", ("left", "right"), "left")
RED = "The car is red."
AT = "The car <bbox>[100,100,200,200]</bbox> is red."


def grounding(judges: JudgeSet, *texts: str, **options: Any) -> Any:
    text = "<think>" + "\n".join(texts) + "</think><answer>left</answer>"
    context = RewardContext(judges, **options)
    (score,) = asyncio.run(load("semantic_grounding")([RewardItem("r", SAMPLE, parse(text))], context))
    return score


@pytest.fixture
def accepting(scripted: Any) -> JudgeSet:
    """Accepts every sentence that does not say "false"."""
    return JudgeSet(scripted(lambda i: tuple(Verdict("INCORRECT" if "false" in s else "CORRECT") for s in i.sentences)))


SAME = [
    (
        "The car is at <|box_start|>(100,100),(200,200)<|box_end|>.",
        "The car is at <|box_start|>(101,100),(201,200)<|box_end|>.",
    ),
    ("The car is at [[100, 100], [200, 200]].", "The car is at <bbox>[100,100,200,202]</bbox>."),
    ("The car is at (100, 100) to (200, 200).", "The car is at (100, 101) – (200, 200)."),
    ("The car is at [100,100,200,200].", "The car is at [200,200,100,100]."),
    (RED, "The car\u200b is red."),
    (RED, "Ｔｈｅ ｃａｒ ｉｓ ｒｅｄ．"),
    (RED, "THE CAR, IS RED!!"),
    (RED, "the c\u00adar is\u2060 red"),
    (RED, "“The car is red.”"),
    (RED, "**The car is red.**"),
    (RED, "So, the car is red."),
    (RED, "Therefore, the car is red."),
    (RED, "Again: the car is red."),
    (RED, "I can see that the car is red."),
    (RED, "As we can see, the car is clearly red."),
    (RED, "A red car."),
    (RED, "There is a red car."),
    (RED, "the car's red"),
    ("The car isn't red.", "The car is not red."),
    ("The cafe\u0301 is open today.", "The café is open today."),
    ("The car is left of the bus.", "The car is to the left of the bus."),
    ("The car is left of the bus.", "The bus is right of the car."),
    ("The car is on the left side of the bus.", "The bus is to the right of the car."),
    ("The cup is above the plate.", "The plate is below the cup."),
    ("The man is taller than the boy.", "The boy is shorter than the man."),
    ("The dog is in front of the tree.", "The tree is behind the dog."),
    (AT, "The car <bbox>[101,100,200,200]</bbox> is red."),
    (AT, "The car <bbox>[103,102,201,199]</bbox> is red."),
    (AT, "The car <bbox>[100.0, 100.0, 200.0, 200.0]</bbox> is red."),
    (AT, "The car ＜bbox＞[100,100,200,200]＜/bbox＞ is red."),
    (AT, RED),
    (
        "The car is at <bbox>[100,100,200,200]</bbox>.",
        "The car is located at <bbox>[100,101,200,200]</bbox>.",
    ),
    ("The car is at <bbox>[4,4,9,9]</bbox>.", "The car is at <bbox>[5,4,9,9]</bbox>."),
    ("The car is at <box>[0.1,0.1,0.5,0.5]</box>.", "The car is at <box>[0.1,0.1,0.501,0.5]</box>."),
]
OTHER = [
    (
        "The car is at <|box_start|>(100,100),(200,200)<|box_end|>.",
        "The car is at <|box_start|>(100,100),(200,260)<|box_end|>.",
    ),
    (RED, "The car is not red."),
    (RED, "The car is blue."),
    (RED, "The bus is red."),
    (RED, "The big car is red."),
    ("The car is left of the bus.", "The bus is left of the car."),
    ("The car is left of the bus.", "The car is right of the bus."),
    ("The car is left of the bus.", "The car is left of the tree."),
    ("The red car is above the blue bus.", "The blue car is above the red bus."),
    ("There are two cars.", "There are three cars."),
    ("The dog is on the sofa.", "The sofa is on the dog."),
    ("In the first picture, the car is red.", "In the second picture, the car is red."),
    (AT, "The car <bbox>[300,100,400,200]</bbox> is red."),
    (AT, "The car <bbox>[130,100,230,200]</bbox> is red."),
    (RED, AT),
    ("The car is at <box>[0.1,0.1,0.5,0.5]</box>.", "The car is at <box>[0.3,0.1,0.7,0.5]</box>."),
    ("红色的圆在左边。", "红色的圆在右边。"),
    ("A is closer than B.", "B is closer than A."),
    ("The reading is -5.", "The reading is 5."),
    ("Here x < 3 holds.", "Here x > 3 holds."),
]


@pytest.mark.parametrize("earlier", ["SKIP", "INCORRECT"])
@pytest.mark.parametrize("mean", ["sentences", "claims"])
def test_a_claim_that_earned_nothing_before_is_no_repetition(earlier: str, mean: str, scripted: Any) -> None:
    """The judge may accept a sentence on its second occurrence alone; then that one earns."""
    judges = JudgeSet(scripted(lambda i: (Verdict(earlier), Verdict("CORRECT"))))
    got = grounding(judges, RED, RED, grounding_mean=mean)
    assert got.value == {"SKIP": 1.0, "INCORRECT": {"sentences": 0.5, "claims": 0.0}[mean]}[earlier]
    assert [s["label"] for s in got.detail["sentences"]] == [earlier, "CORRECT"]


@pytest.mark.parametrize(
    "text",
    [
        "The cat is" + " " * 200_000 + "red.",
        "[" + " " * 200_000 + "1,",
        "<b>" * 100_000,
        "(1,2)" * 100_000,
        "[[1,2] " * 90_000,
    ],
)
def test_a_claim_of_any_text_is_read_in_linear_time(text: str) -> None:
    begin = time.process_time()
    claims([text])
    assert time.process_time() - begin < 5  # seconds of CPU; quadratic work takes minutes


@pytest.mark.parametrize(("first", "second"), SAME)
def test_one_claim_in_two_forms_earns_once(first: str, second: str, accepting: JudgeSet) -> None:
    for between in ((), ("The sky is blue.",), ("The bus stands at <bbox>[5,5,60,60]</bbox>.",)):
        score = grounding(accepting, first, *between, second)
        labels = [d["label"] for d in score.detail["sentences"]]
        assert labels == ["CORRECT"] * (1 + len(between)) + ["INCORRECT"], between
        assert score.detail["sentences"][-1]["by_rule"] is True and score.detail["counted"] == {"repeated": 1}


@pytest.mark.parametrize(("first", "second"), OTHER)
def test_other_claims_are_the_judges(first: str, second: str, accepting: JudgeSet) -> None:
    score = grounding(accepting, first, second)
    assert score.value == 1.0 and "counted" in score.detail and not score.detail["counted"]


def test_a_pronoun_stands_for_its_subject() -> None:
    hats = ["The man wears a hat.", "It is red.", "The woman wears a coat.", "It is red."]
    assert repeated(claims(hats)) == set()
    assert repeated(claims(["The car is parked.", "It is red.", "The car is there.", "It is red."])) == {3}
    at = "It is at <bbox>[1,2,30,40]</bbox>."
    assert repeated(claims([at, "The car is red.", at])) == {2}


def test_a_box_that_moves_on_slowly_is_known_from_each_earlier_one() -> None:
    steps = [f"The car is at <bbox>[{x},100,{x + 100},200]</bbox>." for x in range(100, 160, 2)]
    again = repeated(claims(steps))
    assert len(again) == len(steps) - 1, "each lies within IoU 0.9 of the one before"
    assert same_box((0, 0, 10, 10), (0, 0, 10, 11)) and not same_box((0, 0, 0.5, 0.5), (0.2, 0, 0.7, 0.5))
    assert same_box((5, 5, 5, 5), (5, 5, 5, 5)), "a box without area equals itself"


def test_mean_over_sentences_or_over_distinct_claims(accepting: JudgeSet) -> None:
    """Paraphrases of one true claim raise the mean over sentences and leave the mean over claims as it is."""
    false = "The dog is false."
    true = "The big red car stands there."
    padding = ["The big car stands there red.", "There stands the big red car.", "Red stands the big car."]
    one = grounding(accepting, false, true)
    assert (one.value, one.detail["monitor"]["dilution"]) == (0.5, 0.0)
    padded = grounding(accepting, false, true, *padding)
    assert padded.value == pytest.approx(4 / 5) and padded.detail["monitor"]["dilution"] == pytest.approx(4 / 5 - 1 / 2)
    by_claim = grounding(accepting, false, true, *padding, grounding_mean="claims")
    assert by_claim.value == 0.5
    thrice = [grounding(accepting, *[RED] * 3, grounding_mean=mean).value for mean in ("sentences", "claims")]
    assert thrice == [pytest.approx(1 / 3), 1.0]
    assert distinct(claims([RED, "A red car.", "The bus is red."])) == [0, 0, 1]


def test_a_right_answer_without_a_claim_does_not_escape_the_constraint(scripted: Any) -> None:
    skipping = JudgeSet(scripted(lambda i: (Verdict("SKIP"),) * len(i.sentences)))
    for texts in (("Let me think.",), (), ("The sky.", "Something else entirely.")):
        assert grounding(skipping, *texts).state == "not_applicable", "the paper's definition"
        for mask in ("correct", "all"):
            got = grounding(skipping, *texts, mask=mask, unscorable="zero")
            assert (got.value, got.detail["cause"]) == (0.0, "no_claim")
    wrong = "<think>Let me think.</think><answer>right</answer>"
    context = RewardContext(skipping, mask="correct", unscorable="zero")
    (got,) = asyncio.run(load("semantic_grounding")([RewardItem("r", SAMPLE, parse(wrong))], context))
    assert got.state == "not_applicable", "a wrong answer stays masked (Table 6)"


def test_sentences_over_the_cap_earn_nothing_and_are_counted(scripted: Any) -> None:
    judge = scripted(lambda i: (Verdict("CORRECT"),) * len(i.sentences))
    score = grounding(JudgeSet(judge), *(f"A car with {n} wheels." for n in range(JUDGED_SENTENCES + 88)))
    assert len(judge.items[0].sentences) == JUDGED_SENTENCES
    assert score.value == pytest.approx(JUDGED_SENTENCES / (JUDGED_SENTENCES + 88))
    assert score.detail["counted"] == {"over_cap": 88}
    by_claim = grounding(JudgeSet(judge), *(f"A car with {n} wheels." for n in range(600)), grounding_mean="claims")
    assert by_claim.value == pytest.approx(JUDGED_SENTENCES / 600)


def test_memory_is_linear_in_the_lines_of_a_trace(accepting: JudgeSet) -> None:
    peaks = []
    for lines in (2000, 8000):
        texts = [f"A car {n}." for n in range(lines)]
        tracemalloc.start()
        grounding(accepting, *texts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0] and peaks[1] < 16e6, peaks


def test_a_prefix_is_the_tuple_that_it_stands_for() -> None:
    texts = ("a", "b", "c")
    for n in range(4):
        prefix: Sequence[str] = Prefix(texts, n)
        assert prefix == texts[:n] and texts[:n] == prefix and hash(prefix) == hash(texts[:n])
        assert list(prefix) == list(texts[:n]) and prefix[1:] == texts[:n][1:] and len(prefix) == n
    assert Prefix(texts, 2)[-1] == "b" and Prefix(texts, 2) != ("a", "c") and Prefix(texts, 2) != "ab"
    with pytest.raises(IndexError):
        Prefix(texts, 2)[2]
    lazy = GroundingItem("g", (), "?", texts, tuple(Prefix(texts, n) for n in range(3)))
    plain = GroundingItem("g", (), "?", texts, tuple(texts[:n] for n in range(3)))
    assert lazy == plain and item_key(GROUNDING_TASK, lazy) == item_key(GROUNDING_TASK, plain)
    assert GROUNDING_TASK.call(lazy).text == GROUNDING_TASK.call(plain).text
    wrong = GroundingItem("g", (), "?", texts, (*plain.contexts[:2], Prefix(("a", "x", "c"), 2)))
    with pytest.raises(ValueError, match="contexts"):
        GROUNDING_TASK.call(wrong)
    assert json.loads(json.dumps(list(lazy.contexts[2]))) == ["a", "b"]
