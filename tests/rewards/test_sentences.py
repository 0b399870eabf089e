"""Sentence decomposition: what ends a sentence, what is trivial, and that it stays linear."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo.errors import UserError
from rewards.semantic_grounding import sentences
from rewards.sentence_rules import rules

SPLITS = [
    ("A car. A bus.", ["A car.", "A bus."]),
    ("A car! A bus? Yes", ["A car!", "A bus?", "Yes"]),
    ("The box is 2.5 m wide. Next.", ["The box is 2.5 m wide.", "Next."]),
    ("It is at <bbox>[4,8,20,24]</bbox>. It is red.", ["It is at <bbox>[4,8,20,24]</bbox>.", "It is red."]),
    ("At [1. , 2. , 3, 4] it is. Red.", ["At [1. , 2. , 3, 4] it is.", "Red."]),
    ("At <bbox>[1. , 2. , 3., 4.]</bbox> it is.", ["At <bbox>[1. , 2. , 3., 4.]</bbox> it is."]),
    ("A sedan (e.g. a taxi) vs. a bus, approx. 5 m.", ["A sedan (e.g. a taxi) vs. a bus, approx. 5 m."]),
    ("Mr. Smith waves. He is tall.", ["Mr. Smith waves.", "He is tall."]),
    ("1. The car is red.\n2. The bus is blue.", ["The car is red.", "The bus is blue."]),
    ("- A car\n* A bus\n• A tree\n(a) A dog\n3) A cat", ["A car", "A bus", "A tree", "A dog", "A cat"]),
    ("The car is red\nThe bus is blue", ["The car is red", "The bus is blue"]),
    ("The car is red.\r\n\r\nThe bus is blue.", ["The car is red.", "The bus is blue."]),
    ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
    ("Well... a dog.", ["Well...", "a dog."]),
    ("the car is red. the bus is blue.", ["the car is red.", "the bus is blue."]),
    ("红色的圆在左边。蓝色的在右边！", ["红色的圆在左边。", "蓝色的在右边！"]),
    ("हाँ यह लाल है। वह नीला है।", ["हाँ यह लाल है।", "वह नीला है।"]),
    ("A car <bbox>[1,2,3. It is cut", ["A car <bbox>[1,2,3.", "It is cut"]),
    ("</think> A car.", ["</think> A car."]),
    # a full stop after a unit, an abbreviation before a number, initials: an end or not, by what follows
    ("The box is 30 px. The bus is red.", ["The box is 30 px.", "The bus is red."]),
    ("A dog (approx. 2 m. tall) is near.", ["A dog (approx. 2 m. tall) is near."]),
    ("Cars, buses, etc. are there. One is red.", ["Cars, buses, etc. are there.", "One is red."]),
    ("Cars, buses, etc. The car is red.", ["Cars, buses, etc.", "The car is red."]),
    ("See no. 5 in Fig. 2 here. Red.", ["See no. 5 in Fig. 2 here.", "Red."]),
    ("Is it left? No. It is right.", ["Is it left?", "No.", "It is right."]),
    (
        "The U.S. flag waves at 3 p.m. in the sun. It is red.",
        ["The U.S. flag waves at 3 p.m. in the sun.", "It is red."],
    ),
    ("Mt. Everest and St. Paul's. Both.", ["Mt. Everest and St. Paul's.", "Both."]),
    ("The answer is B. The car is red.", ["The answer is B.", "The car is red."]),
    ("The car is red.The bus is blue.", ["The car is red.", "The bus is blue."]),
    (
        "Qwen2.5-VL and node.js and x1=1.5,y1=2.0 are no ends.",
        ["Qwen2.5-VL and node.js and x1=1.5,y1=2.0 are no ends."],
    ),
    # coordinates, lists, unclosed tags
    ("It is at (12. 5, 30.2). Red.", ["It is at (12. 5, 30.2).", "Red."]),
    ("At x=1.5. Then y=2.5.", ["At x=1.5.", "Then y=2.5."]),
    ("Step 1. A car.\nStep 2. A bus.\nii. A dog\niv) A cat", ["A car.", "A bus.", "A dog", "A cat"]),
    ("## Boxes\n> - **red** car\n10. A tree", ["Boxes", "**red** car", "A tree"]),
    ("<bbox>[1,2,3,4] it is red. The bus <bbox>[1.5,2", ["<bbox>[1,2,3,4] it is red.", "The bus <bbox>[1.5,2"]),
    ("<think>A car. <answer>left. Done", ["<think>A car.", "<answer>left.", "Done"]),
    # numbers of a box over lines are one group
    ("The car [20,\n10,\n100, 50] is red.\nA bus.", ["The car [20, 10, 100, 50] is red.", "A bus."]),
    (
        '[\n {\n "bbox_2d": [\n  20,\n  10,\n  100,\n  50\n ],\n "label": "car"\n }\n]',
        ['"bbox_2d": [ 20, 10, 100, 50 ],', '"label": "car"'],
    ),
    (
        '"bbox": {\n "x1": 20,\n "y1": 10,\n "x2": 100,\n "y2": 50\n}',
        ['"bbox": { "x1": 20, "y1": 10, "x2": 100, "y2": 50 }'],
    ),
    ("<bbox>\n[20,10,100,50]\n</bbox> is red.\nB is.", ["<bbox> [20,10,100,50] </bbox> is red.", "B is."]),
    ("From (20,\n10),\n(100,\n50) it is red.", ["From (20, 10), (100, 50) it is red."]),
    ('"bbox_2d": [\n 20,\n 10', ['"bbox_2d": [ 20, 10']),
    ("[\n [20, 10, 100, 50],\n [30, 20, 90, 80]\n]", ["[20, 10, 100, 50],", "[30, 20, 90, 80]"]),
    ("x1: 20\ny1: 10\nx2: 100\ny2: 50\nA bus.", ["x1: 20 y1: 10 x2: 100 y2: 50", "A bus."]),
    ("Cup (20, 10)\n(100, 50) saucer [1,  2]\n[3]", ["Cup (20, 10)", "(100, 50) saucer [1,  2]", "[3]"]),
    ("There are 5,\n6 cups:\n1. A cup\n2. A mug", ["There are 5,", "6 cups:", "A cup", "A mug"]),
    # other scripts
    ("赤い丸は左にある。青い四角は右にある。", ["赤い丸は左にある。", "青い四角は右にある。"]),
    ("الدائرة حمراء. هل هي يسار؟ نعم.", ["الدائرة حمراء.", "هل هي يسار؟", "نعم."]),
    ("Красный круг слева. Он большой!", ["Красный круг слева.", "Он большой!"]),
    ("빨간 원이 왼쪽에 있다. 크다.", ["빨간 원이 왼쪽에 있다.", "크다."]),
    ("วงกลมสีแดงอยู่ทางซ้าย", ["วงกลมสีแดงอยู่ทางซ้าย"]),
    ("Ein Auto, z.B. rot. Es fährt.", ["Ein Auto, z.B. rot.", "Es fährt."]),
    ("...\n---\n1.\n**", []),
    ("", []),
]


@pytest.mark.parametrize(("think", "texts"), SPLITS)
def test_splits(think: str, texts: list[str]) -> None:
    assert [s.text for s in sentences(think)] == texts


VISUAL = [
    "The red circle is left of the blue square.",
    "Therefore, the red circle is left.",
    "So the dogs are here.",
    "Wait, it is at <bbox>[1,2,3,4]</bbox>.",
    "Let me look at 3 of them.",
    "Zwei Autos stehen da.",
    "红色的圆在左边。",
]
TRIVIAL = [
    "Let me think about this.",
    "Let's try something else.",
    "Wait, this seems off.",
    "Therefore, the answer is B.",
    "I need to decide.",
    "So that is it.",
    "Hmm.",
    "2 + 3 = 5",
    "Yes.",
]


@pytest.mark.parametrize("text", VISUAL)
def test_claims_go_to_the_judge_however_they_begin(text: str) -> None:
    assert [s.visual for s in sentences(text)] == [True]


@pytest.mark.parametrize("text", TRIVIAL)
def test_trivial_sentences_do_not(text: str) -> None:
    assert [s.visual for s in sentences(text)] == [False]


@given(st.text(alphabet="aB1 .!?\n<>[]()。-*,", max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_letter_is_lost_or_doubled(think: str) -> None:
    kept = "".join(s.text for s in sentences(think))
    letters = [c for c in think if c.isalpha()]
    assert sum(c.isalpha() for c in kept) <= len(letters)
    if not any(c in think for c in ".)"):  # list markers ("a.") are taken off
        assert [c for c in kept if c.isalpha()] == letters


HUGE = [
    "a. ",
    ". ",
    "[",
    "<a>",
    "1. ",
    "- ",
    "x",
    "[. ",
    "(a) ",
    "a.\n",
    "!",
    ")",
    "so. ",
    "let ",
    "<bbox>.",
    "。",
    "e.g. ",
    "ab.Cd ",
    "(1. ",
    "p.m. a",
    "No. 1",
]


@pytest.mark.parametrize("piece", HUGE)
def test_linear(piece: str) -> None:
    begin = time.process_time()  # a tenth of a second where it is linear, minutes where it is not
    sentences(piece * (100_000 // len(piece)))
    sentences("." * 50_000 + piece * 1000)
    assert time.process_time() - begin < 10.0


def test_the_filter_is_a_file(tmp_path: Path) -> None:
    """Prefixes and visual words are data: another file, another filter."""
    lists = {"prefixes": ["hm"], "trivial": ["nope"], "visual_words": ["zebra"]}
    rest = {key: ["x"] for key in ("abbreviations", "numbered", "units", "openers")}
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({**lists, **rest}))
    own = rules(path)
    assert own.prefixes.match("hm, a dog") and not own.prefixes.match("hmm") and "zebra" in own.visual_words
    assert own.trivial.match("nope") and not rules().trivial.match("nope")


def test_broken_rules_say_which_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "prefixes: ['(']\ntrivial: []\nvisual_words: []\nabbreviations: []\nnumbered: []\nunits: []\nopeners: []\n"
    )
    with pytest.raises(UserError, match=r"rules\.yaml"):
        rules(path)
