"""The meanings of `Response` that scripts rely on, on tables of nasty texts, and that nothing makes the parser raise or crawl."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo.inference.replies import reasoning_of
from fgrpo.response import COMMON, Tags, answer_span, closing, parse, with_trace
from fgrpo.types import Box

ANSWERS = [
    ("<think>a</think><answer>left</answer>", "left"),
    ("<think>a</think>\n\n<answer>\n left \n</answer>\n", "left"),
    ("<answer>left</answer>", "left"),
    ("no tags at all: left", None),
    ("", None),
    ("<think>a</think>left", None),
    ("<think>a</think><answer>left", None),
    ("<think>a</think><answer>left</answer><answer>right</answer>", None),
    ("<think>a</think><answer>left</answer> and again <answer>left</answer>", None),
    ("<think>the <answer>left</answer> is wrong</think><answer>right</answer>", "right"),
    ("<think>so <answer>left</answer></think>", None),
    ("<think>so <answer>left</answer></think> done", None),
    ("<think>never closed <answer>left</answer>", "left"),
    ("<think>never closed <answer>left</answer> or <answer>right</answer>", None),
    ("<think>a</think><answer>left</answer></think>", None),
    ("<think>a</think>b</think><answer>left</answer>", "left"),
    ("a</think><answer>left</answer>", "left"),
    ("<think>a</think>I write <answer> now: <answer>left</answer>", "left"),
    ("<think>a</think><answer>left</answer></answer>", "left"),
    ("<think>a<answer>x</think>y</answer>", None),
    ("<think>a</think><answer></answer>", ""),
    ("<think>a</think><answer>a < b</answer>", "a < b"),
    ("<Think>a</Think><Answer>left</Answer>", None),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_answer(text: str, answer: str | None) -> None:
    assert parse(text).answer == answer


FORMS = [
    ("<think>a</think><answer>b</answer>", True),
    (" \n<think>a\nb</think>\n<answer>b</answer>\n", True),
    ("<think></think><answer></answer>", True),
    ("<think>a <bbox>[1,2,3,4]</bbox></think><answer>b</answer>", True),
    ("x<think>a</think><answer>b</answer>", False),
    ("<think>a</think>x<answer>b</answer>", False),
    ("<think>a</think><answer>b</answer>x", False),
    ("<think>a</think><think>a</think><answer>b</answer>", False),
    ("<think>a<think>b</think><answer>b</answer>", False),
    ("<think>a</think><answer>b</answer><answer>b</answer>", False),
    ("<think>a <answer>b</answer></think><answer>b</answer>", False),
    ("<answer>b</answer><think>a</think>", False),
    ("<think>a<answer>b</answer>", False),
    ("<answer>b</answer>", False),
    ("", False),
]


@pytest.mark.parametrize(("text", "well_formed"), FORMS)
def test_well_formed(text: str, well_formed: bool) -> None:
    assert parse(text).well_formed is well_formed


TRACES = [
    ("<think> one\ntwo </think><answer>b</answer>", "one\ntwo"),
    ("one</think><answer>b</answer>", "one"),
    ("<think>one <answer>b</answer> rest", "one"),
    ("<think>one two", "one two"),
    ("<think>a</think> b </think><answer>c</answer>", "a</think> b"),
    ("plain text", ""),
    ("<answer>b</answer>", ""),
]


@pytest.mark.parametrize(("text", "think"), TRACES)
def test_think(text: str, think: str) -> None:
    assert parse(text).think == think


BOXES = [
    ("[1,2,3,4]", (1, 2, 3, 4)),
    (" [ 1 , 2.5 , 3e1 , +4 ] ", (1, 2.5, 30, 4)),
    ("1,2,3,4", (1, 2, 3, 4)),
    ("[-1,-2,3,4]", (-1, -2, 3, 4)),
    ("[3,2,1,4]", None),
    ("[1,4,3,2]", None),
    ("[1,2,1,4]", None),
    ("[1,2,3]", None),
    ("[1,2,3,4,5]", None),
    ("[1,2,3,4],[5,6,7,8]", None),
    ("[nan,2,3,4]", None),
    ("[1,2,inf,4]", None),
    ("[1,2,1e999,4]", None),
    ("[1,2,1_000,4]", None),
    ("[١,٢,٣,٤]", None),
    ("[x,2,3,4]", None),
    ("", None),
    ("[" + "1" * 300 + ",2,3,4]", None),
]


@pytest.mark.parametrize(("inside", "box"), BOXES)
def test_boxes(inside: str, box: tuple[float, ...] | None) -> None:
    response = parse(f"<think>It is at <bbox>{inside}</bbox>.</think><answer>a</answer>")
    assert response.boxes == (() if box is None else (Box(*box, frame="model"),))
    assert response.dropped_boxes == (box is None)


def test_boxes_are_the_traces_boxes_in_order_and_the_rest_is_counted() -> None:
    text = (
        "<bbox>[0,0,1,1]</bbox><think><bbox>[5,5,6,6]</bbox> <bbox>[9,9,1,1]</bbox> <bbox>[1,1,2,2]</bbox> <bbox>[7,7,8,8]"
        "</think><answer><bbox>[0,0,1,1]</bbox></answer>"
    )
    response = parse(text)
    assert [tuple(b) for b in response.boxes] == [(5, 5, 6, 6), (1, 1, 2, 2)]
    assert response.dropped_boxes == 2


def test_other_models_tags() -> None:
    response = parse("<think><box>[1,2,3,4]</box><bbox>[1,2,3,4]</bbox></think>", box_tag="box", frame="thousand")
    assert response.boxes == (Box(1, 2, 3, 4, "thousand"),)


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<bbox>",
        "</bbox>",
        "[1,2,3,4]",
        "\n",
        " ",
        "left",
        "<",
        ">",
        "nan",
        "\ud800",
        "左",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
@settings(max_examples=400, deadline=None)
def test_never_raises_and_keeps_its_word(text: str) -> None:
    response = parse(text)
    assert all(box.is_valid for box in response.boxes)
    assert len(response.boxes) + response.dropped_boxes >= response.think.count("<bbox>")
    if response.well_formed:
        assert response.answer is not None
        assert parse("  " + text + "\n") == response
    if response.answer is not None:
        assert text.rpartition("</think>")[2].count("</answer>") >= 1


HUGE = [
    "<think>" + "<bbox>[1,2,3,4]</bbox>" * 10_000 + "</think><answer>a</answer>",
    "<think>" * 20_000,
    "<answer>" * 20_000 + "</answer>",
    "<answer></answer>" * 10_000,
    "<bbox>" * 20_000,
    "<think>" + ("<bbox>" + "1" * 195) * 500,
    "<think><bbox>[" + "1" * 100_000 + "]</bbox>",
    "<" * 100_000,
    " " * 100_000,
    "</think>" * 12_000,
]


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_linear_on_huge_texts(text: str) -> None:
    begin = time.process_time()
    parse(text)
    assert time.process_time() - begin < 5.0  # seconds of CPU; quadratic work takes minutes


def test_ten_thousand_boxes() -> None:
    assert len(parse(HUGE[0]).boxes) == 10_000


OTHER_TAGS = [
    # text, trace, answer, whether a trace shows
    ("<thinking>a</thinking><answer>b</answer>", "a", "b", True),
    ("<THINK>a</THINK><Answer>b</ANSWER>", "a", "b", True),
    ("◁think▷a◁/think▷<answer>b</answer>", "a", "b", True),
    ("a</think><answer>b</answer>", "a", "b", True),
    ("a◁/think▷<answer>b</answer>", "a", "b", True),
    ("<think></think><answer>b</answer>", "", "b", True),
    ("<think>a</think><|begin_of_box|>b<|end_of_box|>", "a", "b", True),
    ("<think>a</think><answer>so <|begin_of_box|>b<|end_of_box|></answer>", "a", "b", True),
    ("<think>a", "a", None, True),
    ("<answer>b</answer>", "", "b", False),
    ("b", "", None, False),
]


@pytest.mark.parametrize(("text", "think", "answer", "has_trace"), OTHER_TAGS)
def test_tags_of_other_models(text: str, think: str, answer: str | None, has_trace: bool) -> None:
    response = parse(text, tags=COMMON)
    assert (response.think, response.answer, response.has_trace) == (think, answer, has_trace)
    assert response.well_formed is parse(text).well_formed  # the form is always that of training


def test_training_reads_its_own_tags_alone() -> None:
    for text in ("<thinking>a</thinking>", "<THINK>a</THINK>", "◁think▷a◁/think▷", "<|begin_of_box|>b<|end_of_box|>"):
        assert parse(text).has_trace is False and parse(text).answer is None


def test_a_template_that_opens_the_trace() -> None:
    tags = Tags(opened=True)
    assert parse("a</think><answer>b</answer>", tags=tags).think == "a"
    assert (parse("a, truncated", tags=tags).think, parse("a, truncated").think) == ("a, truncated", "")
    assert answer_span("a, truncated", tags) is None and answer_span("a, truncated") == "a, truncated"


def test_closing_tags() -> None:
    assert [closing(t) for t in ("<think>", "◁think▷", "<|begin_of_box|>", "[THINK]")] == [
        *("</think>", "◁/think▷", "<|end_of_box|>", "[/THINK]"),
    ]
    pairs = ("<|START_THINKING|>", "<|start_of_thought|>", "<scratch> <|done|>")
    assert [closing(t) for t in pairs] == ["<|END_THINKING|>", "<|end_of_thought|>", "<|done|>"]
    for bad in ("", "<>", "think", "think here", "<a> <b> <c>", "<think> "):
        with pytest.raises(ValueError, match="is no opening tag"):
            closing(bad)


REASONING = [
    # content, reasoning, prefix, text
    ("B", "It is left.", "", "<think>It is left.</think>B"),
    ("<answer>B</answer>", " It is left.\n", "", "<think>It is left.</think><answer>B</answer>"),
    ("B", "<think>It is left.</think>", "", "<think>It is left.</think>B"),
    ("B", "It is left.", "<think>", "It is left.</think>B"),
    ("", "It is le", "", "<think>It is le"),
    ("", "So <answer>B</answer>", "", "<think>So <answer>B</answer>"),
    ("<think>It is left.</think>B", "It is left.", "", "<think>It is left.</think>B"),
    ("left", "left", "", "<think>left</think>left"),
    ("B", None, "", "B"),
    ("B", " \n", "", "B"),
    ("B", {"text": "x"}, "", "B"),
]


@pytest.mark.parametrize(("content", "reasoning", "prefix", "text"), REASONING)
def test_reasoning_in_a_field_becomes_the_trace(content: str, reasoning: object, prefix: str, text: str) -> None:
    assert with_trace(content, reasoning, prefix) == text


def test_the_fields_of_reasoning() -> None:
    assert reasoning_of({"content": "B", "reasoning_content": "a"}) == "a"
    assert reasoning_of({"content": "B", "reasoning": "b"}) == "b"
    assert reasoning_of({"content": "B", "reasoning_content": "", "reasoning": "b"}) == "b"
    assert reasoning_of({"content": "B", "reasoning": [{"type": "text", "text": "b"}]}) == "b"
    assert reasoning_of({"content": "B"}) == reasoning_of({"content": "B", "reasoning": 1}) == ""


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<reasoning>", "</reasoning>"),
        ("<thought>", "</thought>"),
        ("[THINK]", "[/THINK]"),
    ],
)
def test_further_common_tags(opened: str, closed: str) -> None:
    for text in (f"{opened}x{closed}B", f"x{closed}B"):
        assert (parse(text, tags=COMMON).think, answer_span(text)) == ("x", "B")
    assert answer_span(f"{opened}x") is None and not parse(f"{opened}x{closed}B").has_trace


def test_a_pair_of_tags_that_differ() -> None:
    tags = Tags(think=("<scratch> <|done|>",), answer=("<final>",))
    assert (parse("<scratch>x<|done|><final>B</final>", tags=tags).think, answer_span("<scratch>x<|done|>B", tags)) == (
        "x",
        "B",
    )
