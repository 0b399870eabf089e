"""Word lists, sentence ends and box edges: each list of sentence_rules.yaml reaches its rule, each side of an image its bound."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fgrpo.response import parse
from fgrpo.types import Box, Sample, Score
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load
from rewards.semantic_grounding import sentences
from rewards.sentence_rules import FILE, rules
from rewards.task import matches

LISTS = {
    "prefixes": ["pre fix"],
    "trivial": ["all of it", "nothing"],
    "visual_words": ["Seen", "spotted"],
    "abbreviations": ["Abb"],
    "numbered": ["Num"],
    "units": ["Uni"],
    "openers": ["open ing"],
}


@pytest.fixture
def own_rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(LISTS), encoding="utf-8")
    return tmp_path / "rules.yaml"


def test_each_word_list_is_read_into_its_own_place(own_rules: Path) -> None:
    table = rules(own_rules)
    assert (table.visual_words, table.abbreviations, table.numbered, table.units) == (
        {"seen", "spotted"}, {"abb"}, {"num"}, {"uni"},
    )  # fmt: skip
    assert table.prefixes.match("pre fix it") and not table.prefixes.match("pre fixes")
    assert not table.prefixes.match("a pre fix") and not table.prefixes.match("PRE FIX")  # of lower-case text
    assert table.trivial.match("nothing") and table.trivial.match("all of it")
    assert not table.trivial.match("nothing more") and not table.trivial.match("so nothing")
    assert table.openers.search("an Open Ing here")
    assert not table.openers.search("an open ings here") and not table.openers.search("re-xopen ing")


def test_each_list_of_the_repository_does_its_own_work() -> None:
    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    words = {key: " ".join(data[key]).split() for key in ("abbreviations", "numbered", "units")}
    for word in words["abbreviations"]:
        for follows in ("The bus", "the bus", "5 buses"):
            assert len(sentences(f"The car, {word}. {follows} is red")) == 1, (word, follows)
    for word in set(words["numbered"]) - set(words["units"]):  # "sec" is a unit first
        assert len(sentences(f"The car {word}. 5 is red")) == 1, word
        assert len(sentences(f"The car {word}. The bus is red")) == 2, word
    for word in words["units"]:
        assert len(sentences(f"The car is 30 {word}. wide and red")) == 1, word
        assert len(sentences(f"The car is 30 {word}. The bus is red")) == 2, word
        assert len(sentences(f"The car is 30 {word}. 5 buses are red")) == 2, word


@pytest.mark.parametrize(
    ("think", "texts"),
    [
        ("See the U.S. flag. It waves.", ["See the U.S. flag.", "It waves."]),
        ("It is from the U.S. The bus is red.", ["It is from the U.S.", "The bus is red."]),
        ("He is in group b. now it is red.", ["He is in group b.", "now it is red."]),  # one letter is no initials
        ("It reads node.js. then it is red.", ["It reads node.js.", "then it is red."]),  # nor is a name with a dot
        ("(e.g. a car) is red.", ["(e.g. a car) is red."]),
        ('It says "approx. 5" here.', ['It says "approx. 5" here.']),
        ("It is red.The bus is blue.", ["It is red.", "The bus is blue."]),
        ("It is red.the bus is blue.", ["It is red.the bus is blue."]),
        ("It is RED.The bus is blue.", ["It is RED.The bus is blue."]),
        ("It is red!\tThe bus is blue?", ["It is red!", "The bus is blue?"]),
        ("A car etc.", ["A car etc."]),
        ("[1. 2] car [3. 4] bus. Red.", ["[1. 2] car [3. 4] bus.", "Red."]),
        ("A car. [1. 2] bus. [3. 4] dog.", ["A car.", "[1. 2] bus.", "[3. 4] dog."]),
        ("Step 12. A car. Step 13. A bus.", ["A car.", "Step 13. A bus."]),
    ],
)
def test_what_follows_a_full_stop_decides(think: str, texts: list[str]) -> None:
    assert [s.text for s in sentences(think)] == texts


@pytest.mark.parametrize(
    ("text", "visual"),
    [
        ("Therefore, it is that.", False),
        ("Therefore, it is 3.", True),  # a number
        ("Therefore, it is <box>[1,2,3,4]</box>.", True),
        ("Therefore, the cars win.", True),  # plurals in s and es
        ("Therefore, the buses win.", True),
        ("Therefore, the CAR wins.", True),
        ("Therefores are odd.", True),  # no prefix, only a longer word
        ("Yes!", False),
        ("Yes or something.", True),
    ],
)
def test_what_makes_a_sentence_visual(text: str, visual: bool) -> None:
    assert [s.visual for s in sentences(text)] == [visual]


def spatial(truth: tuple[Box, ...], image: str | None, text: str, judges: JudgeSet) -> Score:
    sample = Sample("vgr/train/0", (image,) if image else (), "q", ("a",), "a", truth)
    item = RewardItem("r", sample, parse(f"<think>{text}</think><answer>a</answer>"))
    (got,) = asyncio.run(load("spatial_grounding")([item], RewardContext(judges, min_pixels=784, max_pixels=12544)))
    return got


@pytest.fixture
def square(tmp_path: Path) -> str:
    """An image of 112 x 84 pixels, which the model sees as it is."""
    Image.new("RGB", (112, 84)).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("box", "is_inside"),
    [
        ((0, 0, 112, 84), True),
        ((-9, -9, 0.5, 0.5), True),
        ((111.5, 83.5, 130, 130), True),
        ((-9, 5, 0, 9), False),
        ((5, -9, 9, 0), False),
        ((112, 5, 130, 9), False),
        ((5, 84, 9, 130), False),
        ((90, 5, 100, 9), True),  # within the width, beyond the height
        ((-9, 5, 1, 9), True),
        ((5, -9, 9, 1), True),
    ],
)
def test_an_annotated_box_counts_if_it_covers_some_of_the_image(
    box: tuple[float, ...], is_inside: bool, square: str, no_judge: JudgeSet
) -> None:
    whole = Box(0, 0, 56, 42, "original")
    got = spatial((whole, Box(*box, "original")), square, "<bbox>[0,0,56,42]</bbox>", no_judge)
    assert got.detail["gt_dropped"] == int(not is_inside)
    assert len(got.detail["gt"]) == 1 + is_inside
    assert got.value == pytest.approx(1 / (1 + is_inside))


def test_model_pixels_are_taken_as_they_are_without_an_image(no_judge: JudgeSet) -> None:
    truth = (Box(500, 500, 600, 600),)  # beyond any image, and no image to compare with
    got = spatial(truth, None, "<bbox>[500,500,600,600]</bbox>", no_judge)
    assert (got.value, got.detail["outside"], got.detail["gt_dropped"]) == (1.0, None, 0)
    got = spatial(truth, None, "nothing", no_judge)
    assert (got.value, got.detail["outside"]) == (0.0, 0)
    got = spatial((Box(0, 0, 9, 9, "original"),), None, "<bbox>[0,0,9,9]</bbox>", no_judge)
    assert got.state == "failed" and "image 0" in got.reason


def test_an_unreadable_image_leaves_model_pixels_scored(tmp_path: Path, no_judge: JudgeSet) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    got = spatial((Box(0, 0, 9, 9),), str(tmp_path / "broken.png"), "<bbox>[0,0,9,9]</bbox>", no_judge)
    assert (got.value, got.detail["outside"]) == (1.0, None)


@pytest.mark.parametrize(
    ("answer", "gold", "choices", "verdict"),
    [
        ("B right", "right", ("left", "right"), True),
        ("right B", "right", ("left", "right"), True),
        ("right right", "right", ("left", "right"), False),
        ("A right", "right", ("left", "right"), False),
        ("b", "B", ("left", "right"), True),  # the gold option as a letter
        ("right", "b", ("left", "right"), True),
        ("left", "b", ("left", "right"), False),
        ("left", "A", ("left", "right"), True),
        ("a", "A", ("left", "right"), True),
        ("c", "c", ("left", "right"), True),  # no third option: texts are compared
        ("b", "a", ("b", "a"), False),  # an option's text is never read as a letter
        ("a", "a", ("b", "a"), True),
        ("a+", "a+", ("a-", "a+"), True),  # options that differ in punctuation alone
        ("a-", "a+", ("a-", "a+"), False),
        ("a", "a+", ("a-", "a+"), False),
        ("it's 1,000.5", "its 1,000.5", ("its 1,000.5", "x"), True),
        ("+", "+", ("+", "-"), True),  # options of signs alone
        ("+", "-", ("+", "-"), False),
        ("<", ">", ("<", ">"), False),
        (" \u200b", "<", ("<", ">"), False),  # nothing visible
    ],
)
def test_letters_texts_and_both(answer: str, gold: str, choices: tuple[str, ...], verdict: bool) -> None:
    assert matches(answer, gold, choices) is verdict
