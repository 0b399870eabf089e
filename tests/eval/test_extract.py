"""Answers held against strings that other harnesses get wrong."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from answer_phrasings import FRESH, FRESH_OPEN, PHRASINGS, REVIEWED, REVIEWED_OPEN
from answer_phrasings import OPEN as OPEN_PHRASINGS
from hypothesis import given
from hypothesis import strategies as st

from eval.open_answers import same_open_answer
from eval.score import answer_span, extract_choice
from fgrpo.response import Tags
from rewards.task import matches

LR = ("left", "right")
TABLE = [
    # letters in an answer's form
    ("B", LR, 1),
    ("b", LR, 1),
    ("(B)", LR, 1),
    ("**B**", LR, 1),
    ("\\boxed{B}", LR, 1),
    ("B. right", LR, 1),
    ("A) left", LR, 0),
    ("the answer is B", LR, 1),
    ("Answer: C", ("x", "y", "z"), 2),
    ("Answer: b", LR, 1),
    ("The correct option is B", LR, 1),
    ("B is the correct answer", LR, 1),
    ("The answer is B because it is far", LR, 1),
    ("I think it is on that side, B", LR, 1),
    ("So the answer is: (A) left", LR, 0),
    ("The answer is **B. right**", LR, 1),
    ("The car is not moving. The answer is B.", LR, 1),
    # a letter that is none
    ("A box", ("ball", "box"), 1),
    ("the answer is A box", ("ball", "box"), 1),
    ("A photo shows nothing", LR, None),
    ("B is right of A", ("x", "y"), None),
    ("I don't know", LR, None),
    ("The car A is near", LR, None),
    ("Is the view from A or B?", ("x", "y"), None),
    ("Answer: E", LR, None),
    ("The answer is B, as seen in view A.", LR, 1),
    ("<think>view A.</think><answer>B</answer> as in view A.", LR, 1),
    # texts
    ("left", LR, 0),
    ("The answer is left.", LR, 0),
    ("12", ("1", "2", "12"), 2),
    ("there are 12", ("1", "2", "12"), 2),
    ("circle", ("the circle", "the square"), 0),
    ("No.", ("Yes", "No"), 1),
    ("The answer is the red box.", ("box", "red box"), 1),
    # two candidates, negations, conflicts
    ("left or right", LR, None),
    ("not left", LR, None),
    ("it isn't left", LR, None),
    ("The answer is not B", LR, None),
    ("No, it is not", ("Yes", "No"), 1),
    ("No, it is", ("Yes", "No"), None),
    ("Yes, it is not", ("Yes", "No"), None),
    ("(A) is wrong, so (B)", LR, None),
    ("B. left", LR, None),
    ("left, B", LR, None),
    ("(A) or (B)", LR, None),
    ("Either (A) or (B)", LR, None),
    ("The answer could be (A) or (B)", LR, None),
    ("The answer is (A) or (B)", LR, None),
    ("Option A or option B", LR, None),
    ("It lies between (A) and (B)", LR, None),
    ("The larger one is (A), the smaller one (B)", LR, None),
    ("Both fit: A, B", LR, None),
    ("A or\nB", LR, None),
    ("The answer is (B), not what (A) shows", LR, None),
    ("Option A is far off. The answer is B.", LR, 1),
    ("The answer is (A) right", LR, None),
    ("A", ("B", "A"), None),
    ("It is the red box", ("box", "red box"), 1),
    # where the answer stands
    ("<think>the answer is A</think>", LR, None),
    ("<think>the answer is A", LR, None),
    ("<think>So A.</think><answer>right</answer>", LR, 1),
    ("<answer>A</answer><answer>B</answer>", LR, None),
    ("<think>left</think> The answer is B.", LR, 1),
    ("<answer>B", LR, None),
    ("", LR, None),
]


@pytest.mark.parametrize(("text", "choices", "expected"), TABLE)
def test_extract_choice(text: str, choices: tuple[str, ...], expected: int | None) -> None:
    assert extract_choice(text, choices) == expected


def test_without_options_nothing_is_chosen() -> None:
    assert extract_choice("B", ()) is None


def test_the_span_never_holds_the_trace() -> None:
    assert answer_span("<think>secret</think> visible") == "visible"
    assert answer_span("<think>secret") is None


@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_text_gives_an_option_or_none(text: str, choices: list[str]) -> None:
    found = extract_choice(text, choices)
    assert found is None or 0 <= found < len(choices)


def test_options_in_any_order_give_the_same_text() -> None:
    for text in ("The answer is left.", "right", "not left", "left or right"):
        one, other = extract_choice(text, LR), extract_choice(text, LR[::-1])
        assert (one is None) == (other is None)
        assert one is None or other is None or LR[one] == LR[::-1][other]


OPEN = [
    ("3", "3", True),
    ("Three", "3", True),
    ("three lanes", "3", True),
    ("There are 3 lanes.", "3", True),
    ("The answer is 3.", "3", True),
    ("3", "Three", True),
    ("2.5", "2.5", True),
    ("Yes.", "yes", True),
    ("The answer is **a stop sign**", "stop sign", True),
    ("It is a stop sign.", "stop sign", True),
    ("Yes, there is one.", "yes", True),
    ("No. It is not there.", "No", True),
    ("Yes, there is one.", "no", False),
    ("No, or yes", "no", False),
    ("It is not a stop sign.", "stop sign", False),
    ("It isn't a stop sign.", "stop sign", False),
    ("13", "3", False),
    ("3 or 4", "3", False),
    ("not 3", "3", False),
    ("-3", "3", False),
    ("2.53", "2.5", False),
    ("not yes", "yes", False),
    ("Yes and no", "yes", False),
    ("a stop sign or a yield sign", "stop sign", False),
    ("", "3", False),
]


@pytest.mark.parametrize(("text", "gold", "expected"), OPEN)
def test_open_answers(text: str, gold: str, expected: bool) -> None:
    assert (same_open_answer(text, gold) is True) is expected


ROWS = [(text, choices, right) for choices, rows in (*PHRASINGS, *FRESH, *REVIEWED) for text, right in rows]
FULL_WIDTH = {code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1) if chr(code) not in "<>\\|$#*`_{}~'\""}


def test_the_table_of_phrasings_is_large_and_has_each_phrase_once() -> None:
    keys = [(text, choices) for text, choices, _ in ROWS]
    assert len(ROWS) > 1000 and len(set(keys)) == len(keys)
    assert all(right is None or 0 <= right < len(choices) for _, choices, right in ROWS)


def test_no_phrasing_is_read_wrongly_and_few_clear_ones_are_undecided() -> None:
    read = [(text, choices, extract_choice(text, choices), right) for text, choices, right in ROWS]
    assert [row for row in read if row[2] is not None and row[2] != row[3]] == []
    undecided = [row[0] for row in read if row[2] is None and row[3] is not None]
    assert sorted(undecided) == sorted(
        [
            "Because the table is below, A.",
            "Options: A. left B. right. Answer: A",
            "B: It will decrease, as A (increase) is impossible",
            "It'd be inside",
            "A; the table is below the cup",
            "A... no wait, B",
            "Between A and B I would choose B.",
            "Rule out A. That leaves B.",
            "Everything except B is wrong",
            "You're right, it is on the left.",
            "All right, left.",
            "Looks like left to me",
            "No, wait, yes.",
            "Not really",
            "Of course not",
            "Yes, the car is not parked",
            "It does.",
            "There are no dogs in the image, so no.",
            "2 + 1 = 3",
            "Count: 2 red + 2 blue = 4",
            "I see 2 red ones and 3 blue ones, so 5 in total.",
            "four people, two of them children",
            "The red hat is blue.",
            "neither red nor blue but green",
            "D for green",
            "1,5 meters",
            "3 meters or so",
            "the red cup is closer than the blue cup",
            "The table is not the one; the red cup is.",
            "The camera didn't rotate",
            "The object in panel B is behind the chair",
            "The answer can't be anything other than C",
            "The left is closer to the camera",
            "the viewer's left",
            "As mentioned above, B",
            "above all, B",
            "There is not just 2 but 3",
            "- 3",
            "~~A~~ B",
            "\\sout{A} B",
            "[x] A",
        ]
    )


@pytest.mark.parametrize("box", ["\\boxed{", "\\fbox {", "<|begin_of_box|>\\boxed{"])
def test_boxes_within_boxes_are_read_to_a_limited_depth(box: str) -> None:
    def boxed(depth: int) -> str:
        return "\\boxed{" * depth + "B" + "}" * depth

    assert [extract_choice(boxed(depth), LR) for depth in (1, 2, 4)] == [1, 1, 1]
    assert extract_choice(boxed(1000), LR) is None and extract_choice(box * 1000, LR) is None


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("4", "5", False),
        ("There are four dogs.", "5", False),
        ("no", "yes", False),
        ("crimson", "red", False),
        ("dogs", "dog", None),
        ("1e3", "1000", None),
        ("50%", "0.5", None),
        ("cinco", "5", None),
        ("more than 5", "5", None),
        ("4 or 6", "5", None),
        ("red?", "red", None),
        ("yes and no", "yes", None),
        ("maybe", "yes", None),
        ("", "5", None),
    ],
)
def test_an_open_answer_is_another_one_or_undecided(text: str, gold: str, expected: bool | None) -> None:
    assert same_open_answer(text, gold) is expected


def test_no_open_phrasing_is_read_wrongly() -> None:
    read = [
        (text, gold, same_open_answer(text, gold), right)
        for text, gold, right in (*OPEN_PHRASINGS, *FRESH_OPEN, *REVIEWED_OPEN)
    ]
    assert [row for row in read if (row[2] is True) is not row[3]] == []


def test_training_and_evaluation_agree_where_both_decide() -> None:
    for text, choices, _ in ROWS:
        answer, chosen = answer_span(text), extract_choice(text, choices)
        trained = [i for i, choice in enumerate(choices) if matches(answer, choice, choices)]
        assert len(trained) <= 1
        assert chosen is None or not trained or trained == [chosen], text


@pytest.mark.parametrize("choices", [("left", "right"), ("5", "-5", "1,000"), ("Yes", "No"), ("a cat", "a dog")])
def test_training_and_evaluation_read_unicode_alike(choices: tuple[str, ...]) -> None:
    for (n, choice), form in itertools.product(
        enumerate(choices), ("{0}", "({0})", "{0}.", "{0}. {1}", "{1}", "{1} ({0})")
    ):
        text = form.format("ABC"[n], choice)
        for written in (
            text,
            text.translate(FULL_WIDTH),
            text.replace("-", "\u2212"),
            f"\u200b{text}\ufeff",
            text.lower(),
        ):
            assert extract_choice(written, choices) == n, written
            assert [c for c in choices if matches(written, c, choices)] == [choice], written


def test_what_looks_alike_but_is_other_is_read_as_other_by_both() -> None:
    for text, choices in (
        ("5\u00b2", ("52", "5")),
        ("5\u00bd", ("51/2", "5")),
        ("<5", ("5", "6")),
        ("\u22655", ("5", "6")),
    ):
        assert extract_choice(text, choices) is None
        assert not any(matches(text, choice, choices) for choice in choices)


def test_tags_are_those_of_the_model() -> None:
    text = "[THINK]left[/THINK]<final>B</final>"
    assert extract_choice(text, LR) is None
    assert extract_choice(text, LR, Tags(("[THINK]",), ("<final>",))) == 1
    assert extract_choice("The cup is left, then</THINK> B", LR) == 1
    assert extract_choice("The answer is A", LR, Tags(opened=True)) is None  # truncated inside its trace


def test_a_long_answer_takes_no_time() -> None:
    assert extract_choice("The cup is on the left of the table. " * 20_000 + "The answer is B.", LR) is None
    for piece in (
        "in the image , ",
        "the left of the ",
        "A) ",
        "\\boxed{",
        "twenty ",
        "\n",
        "选 ",
        "$a ",
        "1 000 ",
        "la respuesta ",
    ):
        extract_choice(piece * 300, LR)
    for blanks in (
        f"选{' ' * 20_000}x",
        f"答案{' ' * 20_000}x",
        f"La respuesta{' ' * 20_000}x",
        f"A{' ' * 20_000}です x",
    ):
        assert extract_choice(blanks, LR) is None


def third_party() -> Iterator[tuple[str, str, str, str]]:
    """(kind of question, its options or gold answer, value, text) of each line of the table."""
    heading = ""
    for line in (Path(__file__).parent / "answers_of_a_third_party.tsv").read_text(encoding="utf-8").split("\n"):
        if line.startswith("@"):
            heading = line
        elif line and not line.startswith("# "):
            value, _, text = line.partition("\t")
            kind = "open" if heading.startswith("@open ") else "choice"
            yield (
                kind,
                heading.rpartition(" | ")[2] if kind == "open" else heading[2:],
                value,
                text.replace("\\n", "\n"),
            )


def test_answers_of_a_third_party_are_read_as_they_say_or_left_undecided() -> None:
    """Training may not take another option either; it ignores question marks and tildes, as punctuation ("A?")."""
    counts = Counter[str]()
    wrong = []
    for kind, about, value, text in third_party():
        if kind == "open":
            read = {True: "1", False: "0", None: "-"}[same_open_answer(text, about)]
            is_right = read == value or (read == "-" and value in ("0", "1?"))
        else:
            choices = tuple(about.split(" | "))
            index = extract_choice(text, choices)
            read = "-" if index is None else "ABCDEFGHI"[index]
            is_right = read == value or (value.endswith("?") and read in ("-", value[0]))
            trained = ["ABCDEFGHI"[i] for i, choice in enumerate(choices) if matches(text, choice, choices)]
            if any(letter != value[0] for letter in trained) and not set("?~") & set(text):
                wrong.append((text, choices, value, trained))
        counts[kind] += 1
        counts["may be undecided"] += value.endswith("?")
        if not is_right:
            wrong.append((text, about, value, read))
    assert wrong == []
    assert counts["choice"] > 1500 and counts["open"] > 230 and counts["may be undecided"] <= 0.11 * counts.total()
