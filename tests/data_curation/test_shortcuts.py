"""What options give away: sentences differ in the part that answers, and no rule solves questions without the image."""

from __future__ import annotations

import random

import pytest

from data_curation import shortcuts
from data_curation.multiple_choice import AnswerPool, core, make_choices
from fgrpo.types import Sample

COLORS = "black white gray red green blue yellow brown orange purple pink".split()  # noqa: SIM905
THINGS = "hat shirt car bus umbrella bag jacket bicycle chair boat kite helmet sign door vase towel".split()  # noqa: SIM905
PEOPLE = ("man", "woman", "boy", "girl", "player", "rider")
HELD = (
    "umbrella",
    "bag",
    "phone",
    "tennis racket",
    "cup",
    "book",
    "surfboard",
    "kite",
    "camera",
    "baseball bat",
    "apple",
)
PLACES = ("table", "shelf", "sofa", "bench", "counter", "desk", "kitchen floor", "window sill", "car roof")
STUFFS = ("wood", "metal", "plastic", "glass", "leather", "stone", "brick", "concrete")
ACTS = ("riding a horse", "playing tennis", "eating pizza", "reading a book", "walking the dog", "flying a kite")
SIGNS = ("stop", "exit", "open 24 hours", "no parking", "main street", "bakery", "coffee")
COUNTS = ("one", "two", "three", "four", "five", "six", "seven")


def records(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Made-up questions and free-form answers in the style of VisCoT and VGR: words, phrases and sentences."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        color, thing, person, held, place, stuff, act, sign = (
            rng.choice(kind) for kind in (COLORS, THINGS, PEOPLE, HELD, PLACES, STUFFS, ACTS, SIGNS)
        )
        number, side = rng.randint(1, 7), rng.choice(("left", "right"))
        a_held = f"an {held}" if held[0] in "aeiou" else f"a {held}"
        made.append(
            rng.choice(
                [
                    (f"What is the color of the {thing}?", f"The color of the {thing} is {color}."),
                    (f"What color is the {thing}?", f"The {thing} is {color}."),
                    (f"What color is the {person}'s {thing}?", color),
                    (f"What is the {person} holding?", f"The {person} is holding {a_held}."),
                    (f"What is the {person} holding?", held),
                    (f"What is the {person} holding in the picture?", a_held),
                    (f"Where is the {held}?", f"The {held} is on the {place}."),
                    (f"Where is the {held}?", f"on the {place}"),
                    (f"How many {thing}s are there?", f"There are {COUNTS[number - 1]} {thing}s."),
                    (f"How many {thing}s are visible in the image?", f"{number}"),
                    (f"What is the {thing} made of?", f"The {thing} is made of {stuff}."),
                    (f"What is the {person} doing?", f"The {person} is {act}."),
                    ("What does the sign say?", f"The sign says {sign}."),
                    (f"Is the {thing} {color}?", rng.choice([f"Yes, the {thing} is {color}.", f"No, the {thing} is not."])),
                    (f"Is the {thing} on the left or right of the {person}?", f"The {thing} is on the {side} of the {person}."),
                    (f"Which side of the image is the {thing} on?", f"The {thing} is on the {side} side."),
                    (f"Who is wearing the {thing}?", f"The {person} is wearing the {thing}."),
                ]
            )
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def pool() -> AnswerPool:
    filled = AnswerPool()
    for question, answer in records(600):
        filled.add("g", question, answer)
    return filled


def samples(pool: AnswerPool, count: int, seed: int = 0) -> list[Sample]:
    made = []
    for n, (question, text) in enumerate(records(count, seed)):
        answer = core(question, text)
        choices = make_choices("g", question, answer, pool, random.Random(f"{seed}/{n}"), 4)
        assert choices is not None, (question, answer)
        made.append(Sample(f"g/{n}", (), question, choices, answer))
    return made


@pytest.mark.parametrize("only_sentences", [True, False])
def test_no_rule_solves_the_questions_without_the_image(pool: AnswerPool, only_sentences: bool) -> None:
    """Rates were 72% (overlap) among sentences when distractors were other answers of the data set."""
    made = [s for s in samples(pool, 600) if not only_sentences or len(s.answer.split()) > 3]
    rates = shortcuts.measure(made).rates
    assert set(rates) == {"chance", "word overlap", "words shared between options", "length", "position"}
    assert len(made) > 350
    for rule, rate in rates.items():
        assert abs(rate - rates["chance"]) < 0.05, rule


def test_the_measurement_finds_shortcuts() -> None:
    question = "What is the color of the hat?"
    gold = "The color of the hat is red"
    choices = ("The man rides", gold, "No", "It is a large dog and a cat in the kitchen of the house")
    found = shortcuts.measure([Sample("a/1", (), question, choices, gold)] * 10)
    assert found.rates == {
        "chance": 0.25,
        "word overlap": 1.0,
        "words shared between options": 0.5,  # a tie with the long option
        "length": 0.0,
        "position": 1.0,
    }
    line = shortcuts.line("a", found)
    assert line.startswith("- a: by word overlap 100%") and line.endswith("(chance 25%, 10 questions)")
    assert (
        shortcuts.line("b", shortcuts.measure([Sample("b/1", (), "Q", (), "x")])) == "- b: no multiple-choice questions"
    )


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is the color of the hat?", "The color of the hat is red.", "The color of the hat is {}"),
        ("What color is the car?", "The car is dark red", "The car is dark {}"),
        ("What is the man holding?", "The man is holding an umbrella.", "The man is holding {}"),
        ("What is the man on the left doing?", "The man on the left is riding a horse", "The man on the left is {}"),
        ("How many hats are there?", "There are three red hats.", "There are {} red hats"),
        ("Where is the cup?", "The cup is on the shelf.", "The cup is on {}"),
        ("Which side is the dog on?", "It is on the left side.", "It is on the {} side"),
        ("Is the hat red or blue?", "The hat is red.", "The hat is {}"),
        (
            "Is it nearer to the blue square or the green circle?",
            "It is nearer to the blue square",
            "It is nearer to the {}",
        ),
        ("Who is wearing the hat?", "The boy is wearing the hat.", "{} is wearing the hat"),
        ("What does the sign say?", "The sign says no parking.", "The sign says {}"),
    ],
)
def test_options_of_a_sentence_differ_in_the_part_that_answers(
    pool: AnswerPool, question: str, answer: str, expected: str
) -> None:
    answer = core(question, answer)
    before, after = expected.split("{}")
    choices = make_choices("g", question, answer, pool, random.Random(0), 4)
    assert choices is not None and answer in choices and len(set(choices)) == len(choices) >= 2
    parts = [c.removeprefix(before).removesuffix(after) for c in choices]
    assert all(before + part + after == choice and part for part, choice in zip(parts, choices, strict=True))


def test_a_count_of_one_and_yes_or_no_stand_alone() -> None:
    """The rest of such a sentence would be wrong by its grammar alone."""
    assert core("Is it red?", "No, it is blue.") == "No" and core("Is it?", "Yes.") == "Yes"
    assert core("How many hats are there?", "There is one hat.") == "one"
    assert core("What is it?", "The one on the left") == "The one on the left"
    choices = make_choices("g", "How many hats?", "There are two hats", AnswerPool(), random.Random(1), 4)
    assert choices is not None and len(choices) == 4 and not any("one" in c or "zero" in c for c in choices)


def test_a_sentence_without_an_answering_part_gets_no_options(pool: AnswerPool) -> None:
    for question, answer in (
        ("Is the cup on the table?", "The cup is on the table"),
        ("Is there a dog?", "There is no dog"),
    ):
        assert make_choices("g", question, answer, pool, random.Random(0), 4) is None


def test_the_rank_of_a_number_says_nothing() -> None:
    ranks = [0] * 4
    for seed in range(800):
        choices = make_choices("g", "How many?", "5", AnswerPool(), random.Random(seed), 4)
        assert choices is not None
        ranks[sorted(map(int, choices)).index(5)] += 1
    assert all(150 < n < 250 for n in ranks)


def test_other_correct_answers_are_no_distractors_of_closed_kinds() -> None:
    for seed in range(20):
        choices = make_choices("g", "What color?", "red", AnswerPool(), random.Random(seed), 15, also_true=("Orange",))
        assert choices is not None and "orange" not in choices
