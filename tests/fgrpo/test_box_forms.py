"""Boxes in the forms of other model families: read if the model's file says so, counted otherwise."""

from __future__ import annotations

import pytest

from fgrpo import box_forms
from fgrpo.response import every_box, parse, parse_boxes
from fgrpo.types import Box

TAGGED = "The <bbox>[1, 2, 30, 40]</bbox> car."
JSON = 'The car {"bbox_2d": [1, 2, 30, 40], "label": "car"} and [{\'bbox_2d\': [5,6,7,8]}].'
TOKENS = "<|object_ref_start|>car<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|> <|box_start|>(5, 6), (7, 8)<|box_end|>"
BARE = "The car at [1, 2, 30, 40] and (5, 6)."


@pytest.mark.parametrize(
    ("form", "text", "count"), [("bbox", TAGGED, 1), ("bbox_2d", JSON, 2), ("box_start", TOKENS, 2), ("box", TAGGED, 0)]
)
def test_each_form_is_read_by_its_name(form: str, text: str, count: int) -> None:
    boxes, dropped = parse_boxes(text, box_tag=form, frame="thousand")
    assert boxes == (Box(1, 2, 30, 40, "thousand"), Box(5, 6, 7, 8, "thousand"))[:count] and dropped == 0
    response = parse(f"<think>{text}</think><answer>A</answer>", box_tag=form)
    assert len(response.boxes) == count and response.well_formed


@pytest.mark.parametrize(
    ("text", "form", "own"),
    [
        ('{"bbox_2d": [[1, 2], [30, 40]], "label": "car"}', "bbox_2d", "bbox_2d"),
        ("'bbox_2d':[ [1,2] ,[30,40] ]", "bbox_2d", "bbox_2d"),
        ("<ref>the car</ref><box>(1,2),(30,40)</box>", "box", "box"),  # Qwen-VL
        ("<box> (1, 2) (30, 40) </box>", "box", "box"),
        ("<box>[[1,2],[30,40]]</box>", "box", ""),
    ],
)
def test_two_points_are_a_box(text: str, form: str, own: str) -> None:
    assert every_box(text) == ((Box(1, 2, 30, 40),), 0)
    assert box_forms.unread(text, "bbox") == {form: 1}
    assert not own or parse_boxes(text, box_tag=own) == ((Box(1, 2, 30, 40),), 0)


@pytest.mark.parametrize(
    "text",
    [
        '"bbox_2d": [[1, 2], [30]]',
        '"bbox_2d": [[1, 2], [3, 4], [5, 6]]',
        '"bbox_2d": [[30, 2], [30, 40]]',
        "<box>(1,2),(30)</box>",
        "<box>(1,2),(3,4),(5,6)</box>",
        "<box>(30,2),(30,40)</box>",
    ],
)
def test_points_that_are_no_two_corners_are_counted_and_not_guessed(text: str) -> None:
    assert every_box(text) == ((), 1)
    assert every_box("<points>(1,2),(3,4)</points> <box>the car</box>") == ((), 0), "not written as a box of numbers"
    listed = '"bbox_2d": [[1,2,3,4], [5,6,7,8]]'
    assert every_box(listed) == ((Box(1, 2, 3, 4), Box(5, 6, 7, 8)), 0), "a list of boxes"


@pytest.mark.parametrize("form", ["bbox_2d", "box_start"])
def test_opened_boxes_that_are_not_valid_are_dropped(form: str) -> None:
    bad = {
        "bbox_2d": '"bbox_2d": [9, 9, 1, 1] "bbox_2d": none',
        "box_start": "<|box_start|>(9,9),(1,1)<|box_end|><|box_start|>(1",
    }
    assert parse_boxes(bad[form], box_tag=form) == ((), 2)


@pytest.mark.parametrize(
    ("form", "text", "counts"),
    [
        ("bbox", TAGGED, {}),
        ("box", TAGGED, {"bbox": 1}),
        ("bbox", JSON, {"bbox_2d": 2}),
        ("bbox_2d", JSON, {}),
        ("bbox", TOKENS, {"box_start": 2}),
        ("box_start", TOKENS, {}),
        ("bbox", BARE, {"bare": 1}),
        ("bbox", "<Box>1,2,3,4</Box> <bbox>[1,2,3,4]", {"Box": 1}),
        ("bbox", "<box>10 20 30 40</box> <box>[[1, 2, 3, 4]]</box> <box>(1,2,3,4)</box>", {"box": 3}),
        (
            "bbox",
            "at (10, 20, 30, 40) and <loc_1><loc_2><loc_3><loc_4> <loc0001><loc0002><loc0003><loc0004>",
            {"bare": 1, "loc": 2},
        ),
        ("bbox", "<loc_1><loc_2> and (1, 2, 3) and f(a, b)", {}),
        ("bbox", "The options are [1, 2, 3] and a < b.", {}),
        ("bbox", TAGGED + JSON + TOKENS + BARE, {"bbox_2d": 2, "box_start": 2, "bare": 1}),
    ],
)
def test_boxes_in_other_forms_are_counted(form: str, text: str, counts: dict[str, int]) -> None:
    assert box_forms.unread(text, form) == counts


def test_counting_is_linear() -> None:
    """A quadratic pattern would take minutes here."""
    for piece in (
        "[",
        "<",
        "<bbox>",
        '"bbox_2d": [',
        "<|box_start|>",
        "[1,2,",
        "(1 ",
        "<loc_1>",
        "<box>1 ",
        "<bbox>[1,",
        "<box>((1 ",
        '"bbox_2d": [[1, ',
    ):
        assert set(box_forms.unread(piece * 20_000, "bbox")) <= {"loc"}
        assert box_forms.written(piece * 20_000, "point") == []
        assert parse_boxes(piece * 20_000, box_tag="bbox_2d")[0] == ()


def test_every_form_is_read_in_order() -> None:
    text = TAGGED + JSON + TOKENS + BARE + " <box>[9, 9, 9, 1]</box> <bbox>[1, 2"
    boxes, dropped = every_box(text, frame="thousand")
    first, second = Box(1, 2, 30, 40, "thousand"), Box(5, 6, 7, 8, "thousand")
    assert boxes == (first, first, second, first, second, first) and dropped == 2
    assert [text[one.start] for one in box_forms.written(text, "bbox")] == list("<\"'<<[<")
