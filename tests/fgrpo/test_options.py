"""Options inside a question's text: split in the one way they can be read, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo.options import UnclearOptions, letter_index, letters, split_options

SPLIT = [
    ("Which? A. x B. y", "Which?", ("x", "y")),
    ("(a) Open (b) Closed", "", ("Open", "Closed")),
    ("See view A. then? A. left B. right", "See view A. then?", ("left", "right")),
    ("Nothing here.", "Nothing here.", ()),
    ("Only A. one", "Only A. one", ()),
    ("Which? A. Hepatitis B. B. Hepatitis C.", "Which?", ("Hepatitis B.", "Hepatitis C.")),
    (
        "Which? A. Hepatitis B. B. Hepatitis C. C. Hepatitis D.",
        "Which?",
        ("Hepatitis B.", "Hepatitis C.", "Hepatitis D."),
    ),
    ("Which?\nA. Hepatitis B.\nB. Hepatitis C.\n", "Which?", ("Hepatitis B.", "Hepatitis C.")),
    ("Q A. Vitamin A. B. Vitamin B. C. Vitamin C.", "Q", ("Vitamin A.", "Vitamin B.", "Vitamin C.")),
    ("Which is it? (A) in view (B) (B) in view (C)", "Which is it?", ("in view (B)", "in view (C)")),
    ("Blood? A. A. B. B. C. AB.", "Blood?", ("A.", "B.", "AB.")),
    ("Q? A. view A. from left B. other", "Q?", ("view A. from left", "other")),
    ("How many? (A)1 (B)2", "How many?", ("1", "2")),
    ("How many? (A)1(B)2(C)3", "How many?", ("1", "2", "3")),
    ("Q? A.cat B.dog C.bird", "Q?", ("cat", "dog", "bird")),
    ("Q? A.1.5 B.2.5 C.U.S.A.", "Q?", ("1.5", "2.5", "U.S.A.")),
    ("哪个？Ａ．猫 Ｂ．狗", "哪个？", ("猫", "狗")),
    ("哪个？（A）猫（B）狗", "哪个？", ("猫", "狗")),
    ("哪个？A、猫B、狗C、鸟", "哪个？", ("猫", "狗", "鸟")),
    ("Q? A: x B: y", "Q?", ("x", "y")),
    ("Q? (A) red, (B) green, (C) blue", "Q?", ("red", "green", "blue")),
    ("Q?\nA. one, as in B. of\nB. two", "Q?", ("one, as in B. of", "two")),
    ("A: hi. B: no. Reply? (A) yes (B) no", "A: hi. B: no. Reply?", ("yes", "no")),
    ("Compare A. cat and B. dog. Which? A. x B. y C. z", "Compare A. cat and B. dog. Which?", ("x", "y", "z")),
]
INSTRUCTIONS = [
    "\nAnswer with the option's letter from the given choices directly.",
    "\nAnswer with the letter.",
    "\nPlease select the correct answer from the options above.",
    "\n\nPlease answer with one letter only.\n",
    ". Answer with the option's letter.",
    "\nRespond with only the letter of the correct option",
    "\nAnswer:",
    "\nThink first, then give the letter.\nAnswer: ",
    "\n请直接回答选项字母。",
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("text", ["Where?\nA. left\nB. right", "Where? (A) left (B) right"])
def test_an_instruction_after_the_last_option_is_none_of_it(text: str, instruction: str) -> None:
    stem, options = split_options(text + instruction)
    assert (stem, [option.rstrip(".") for option in options]) == ("Where?", ["left", "right"])


@pytest.mark.parametrize(
    "option",
    ["Answer the phone", "Select the option", "answer", "Give the answer to the man", "a\nlong one", "It is given."],
)
def test_an_option_that_reads_like_an_instruction_stays(option: str) -> None:
    assert split_options(f"What next? A. Wait B. {option}")[1] == ("Wait", option)


REFUSED = [
    ("Which? A. Hepatitis B. Hepatitis C. Hepatitis D.", "equal_options"),
    ("Which? A. left B. right C. Left", "equal_options"),
    ("Q? A. cat near view B. today B. dog", "unclear_options"),
    ("Q?\nA. x\nB. y C. z\nD. w", "unclear_options"),
    ("Q? A. x B. y C.z", "unclear_options"),
    ("as in A. left B. right as in A. up B. down", "unclear_options"),
    ("A. x B. y " * 300, "unclear_options"),
]


@pytest.mark.parametrize(("text", "stem", "options"), SPLIT)
def test_split(text: str, stem: str, options: tuple[str, ...]) -> None:
    assert split_options(text) == (stem, options)


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(UnclearOptions, match=f"^{reason}$"):
        split_options(text)


STYLES = (
    "{letter}. {text} ",
    "({letter}) {text} ",
    "{letter}) {text}\n",
    "({letter}){text}",
    "\n{letter}. {text}",
    "{letter}: {text} ",
)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("count", range(2, 27))
def test_any_number_of_options_in_each_style(style: str, count: int) -> None:
    options = tuple(f"{n} apples" for n in range(count))
    for case in (str.upper, str.lower) if style != "({letter}){text}" else (str.upper,):
        shown = "".join(style.format(letter=case(a), text=o) for a, o in zip(letters(count), options, strict=True))
        assert split_options(f"How many?\n{shown}") == ("How many?", options)


@given(st.text(alphabet="AaBbC(). :\n1、（", max_size=60))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        stem, options = split_options(text)
    except UnclearOptions:
        return
    assert len(options) != 1 and stem in text and all(options)


def test_letters() -> None:
    texts = ("x",) * 10
    assert [letter_index(a, texts) for a in ("(B)", "b", "B.", "Ｂ", "（Ｂ）", "J", "K", "", "AB", "é")] == [
        *(1, 1, 1, 1, 1, 9),
        *(None, None, None, None),
    ]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Choose (a) dog, (b) cat, or (c) fish", ("dog", "cat", "fish")),
        ("Is it A. red, B. blue; and C. green", ("red", "blue", "green")),
        ("Which? (A) left or (B) right", ("left", "right")),
        ("What does the sign say?\n- A. Stop\n- B. Go", ("Stop", "Go")),
        ("What does the sign say?\n* (A) Stop\n* (B) Go", ("Stop", "Go")),
        ("What? **A.** left **B.** right", ("left", "right")),
        ("What? **(A)** left **(B)** right", ("left", "right")),
        ("What? [A] left [B] right", ("left", "right")),
        ("What is at [10,20,30,40]? [A] a cup [B] a hat", ("a cup", "a hat")),
    ],
)
def test_lists_and_marked_letters(text: str, options: tuple[str, ...]) -> None:
    assert split_options(text)[1] == options


@pytest.mark.parametrize(
    "text",
    [
        "What? A - left B - right",
        "What? 1. left 2. right",
        "Q?\n1) left\n2) right",
        "Which? (1) a (2) b",
        "Q: i) a ii) b",
    ],
)
def test_options_in_other_markers_are_refused(text: str) -> None:
    with pytest.raises(UnclearOptions, match="unclear_options"):
        split_options(text)


@pytest.mark.parametrize(
    "text",
    ["Is image 1. left of image 2. or not?", "Is it 1.5 or 2.5 m?", "Seen by A - who is B?", "What happens at 1. ?"],
)
def test_texts_without_options_stay(text: str) -> None:
    assert split_options(text) == (text, ())


def test_what_follows_an_option_is_read_in_linear_time() -> None:
    for tail in ("\n" * 50_000 + "x", "please " * 20_000, ". answer " * 20_000, "\n answer " * 20_000):
        assert len(split_options(f"Q? A. x B. y{tail}")[1]) == 2
