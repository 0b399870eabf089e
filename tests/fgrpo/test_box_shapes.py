"""Every way in which models write one box reaches Eq. 1 as the same four numbers, whatever the model's own form is."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from fgrpo import box_forms
from fgrpo.response import every_box, parse_boxes
from fgrpo.types import Box, Frame

CAR, SIZES = Box(20, 10, 100, 50), ((1288, 728),)
OTHER = Box(30, 20, 90, 80)

INSIDE = [
    "[20,10,100,50]",
    "20,10,100,50",
    "20 10 100 50",
    "(20,10,100,50)",
    "[[20,10,100,50]]",
    "[[20,10],[100,50]]",
    "(20,10),(100,50)",
    "[100,50,20,10]",
    "[20, 10, 100, 50, 0.98]",
    "[20,10,100,50,]",
    "[[20,10],[100,10],[100,50],[20,50]]",
    "20,10,100,10,100,50,20,50",
    '["20","10","100","50"]',
    "x1=20, y1=10, x2=100, y2=50",
    "[20px, 10px, 100px, 50px]",
    "（20，10，100，50）",
]
VALUES = [
    *(inside for inside in INSIDE if inside[0] in "[("),
    '{"x1": 20, "y1": 10, "x2": 100, "y2": 50}',
    '{"xmin": 20, "ymin": 10, "xmax": 100, "ymax": 50}',
    '{"x": 20, "y": 10, "width": 80, "height": 40}',
    "[\n  20,\n  10,\n  100,\n  50\n]",
    "[20 10 100 50]",
    '"20,10,100,50"',
    '"[20, 10, 100, 50]"',
]
BARE = [
    *(inside for inside in INSIDE if inside[0] in "[(（x"),
    "[(20,10),(100,50)]",
    "((20,10),(100,50))",
    "[20,10][100,50]",
    "(20, 10) to (100, 50)",
    "(20, 10)-(100, 50)",
    "(20, 10), bottom-right (100, 50)",
    '{"x1": 20, "y1": 10, "x2": 100, "y2": 50}',
    '<box x1="20" y1="10" x2="100" y2="50"/>',
    "left: 20, top: 10, right: 100, bottom: 50",
    "[20 10 100 50]",
    "[20; 10; 100; 50]",
    "{20,10,100,50}",
    "<20,10,100,50>",
    "《20,10,100,50》",
    '{"top_left": [20, 10], "bottom_right": [100, 50]}',
    "left=20, upper=10, right=100, lower=50",
    "xmin=20 xmax=100 ymin=10 ymax=50",
    "[20，10，100，50]",
    "【20,10,100,50】",
    "［２０，１０，１００，５０］",
    "[20、10、100、50]",
    "[2e1, 1e1, 1e2, +50.]",
    r"\[20,10,100,50\]",
    "[(20,10),(100,10),(100,50),(20,50)]",
    "[20,10,100,10,100,50,20,50]",
    "[20,\n10,\n100, 50]",
]  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE)
def test_a_tag_is_read_alike_whether_it_is_the_models_own(inside: str) -> None:
    for tag in ("bbox", "box", "box2"):
        for own in ("bbox", "box", "bbox_2d", "point"):
            assert every_box(f"The <{tag}>{inside}</{tag}> car", box_tag=own, sizes=SIZES) == ((CAR,), 0), (tag, own)
    for own in ("box_start", "bbox"):
        assert every_box(f"<|box_start|>{inside}<|box_end|>", box_tag=own) == ((CAR,), 0)


@pytest.mark.parametrize("value", VALUES)
def test_json_is_read_alike_whether_it_is_the_models_own(value: str) -> None:
    for key in ("bbox_2d", "bbox", "bounding_box"):
        for own in ("bbox_2d", "bbox"):
            text = f'{{"{key}": {value}, "label": "car"}}'
            assert every_box(text, box_tag=own, sizes=SIZES) == ((CAR,), 0), (key, own)


@pytest.mark.parametrize("bare", BARE)
def test_boxes_without_a_mark_are_read(bare: str) -> None:
    for own in ("bbox", "bbox_2d"):
        assert every_box(f"The car {bare} is red.", box_tag=own, sizes=SIZES) == ((CAR,), 0)
    assert box_forms.has_other_form(f"The car {bare} is red.", "bbox")


@pytest.mark.parametrize(
    "text",
    [
        "<bbox>[20,10,100,50],[30,20,90,80]</bbox>",
        "<bbox>[[20,10,100,50], [30,20,90,80]]</bbox>",
        "<box>[20,10,100,50] and [30,20,90,80]</box>",
        '{"bbox_2d": [[20,10,100,50],[30,20,90,80]]}',
        "<|box_start|>(20,10),(100,50),(30,20),(90,80)<|box_end|>",
        "[[20,10,100,50],[30,20,90,80]]",
    ],
)
def test_several_boxes_in_one_mark_are_several_boxes(text: str) -> None:
    for own in ("bbox", "box", "bbox_2d"):
        assert every_box(text, box_tag=own, sizes=SIZES) == ((CAR, OTHER), 0)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped"),
    [
        ("<bbox>[20,10,100,50],[9,9,9,9]</bbox>", (CAR,), 1),
        ("<bbox>[1,2,3]</bbox> <bbox>[1,2,3,4", (), 2),
        ("<bbox>[20,10,100,50] car</bbox>", (), 1),
        ("<bbox>[20,10,100,1e999]</bbox>", (), 1),
        ('{"box_2d": [10, 20, 50, 100]}', (CAR,), 0),  # Gemini's: y first
        ('{"box_2d": {"y1": 10, "x1": 20, "y2": 50, "x2": 100}}', (CAR,), 0),
        ("[10%, 20%, 50%, 60%]", (Box(0.1, 0.2, 0.5, 0.6, "unit"),), 0),
        ("[10%, 20, 50, 60%]", (), 0),
        ("[20,10,100,50", (), 0),
        ("(20,10),(100,50),(120,60),(200,90)", (), 0),  # points of a line as well
        ("<bbox_2d>[20,10,100,50]</bbox_2d>", (CAR,), 0),
    ],
)
def test_dropped_is_found_minus_read(text: str, boxes: tuple[Box, ...], dropped: int) -> None:
    assert every_box(text, sizes=SIZES) == (boxes, dropped)


@pytest.mark.parametrize(
    "text",
    ["<point>[20,10]</point>", "<point>20,10</point>", '{"point": [20,10]}', '{"point_2d": [20, 10]}', '<point x="20" y="10"/>',
     '{"point": {"x": 20, "y": 10}}', "<points>(20,10)</points>"],
)  # fmt: skip
def test_points_are_points_for_every_model_and_no_boxes(text: str) -> None:
    for own in ("bbox", "point"):
        (one,) = box_forms.written(text, own)
        assert one.numbers == (20, 10) and one.form in box_forms.POINTS
    assert every_box(text) == ((), 0) and box_forms.has_other_form(text, "bbox")
    assert not box_forms.unread(text, "bbox"), "points are not counted as boxes"


@pytest.mark.parametrize(("frame", "least"), [("model", 12.88), ("thousand", 10), ("unit", 0.01)])
def test_a_box_without_a_mark_has_one_hundredth_of_the_image_and_lies_in_it(frame: Frame, least: float) -> None:
    def read(x1: float, x2: float) -> bool:
        return bool(every_box(f"[{x1:.4f}, {least}, {x2:.4f}, {10 * least}]", frame=frame, sizes=SIZES)[0])

    assert read(least, 2.01 * least) and not read(least, 1.99 * least)
    assert read(least, 100.9 * least) and not read(least, 101.1 * least)
    assert read(-0.9 * least, 2 * least) and not read(-1.1 * least, 2 * least)


def test_where_the_frame_is_not_known_pixels_and_units_are_boxes() -> None:
    for text, is_read in (("[.1,.1,.5,.5]", True), ("[20,10,100,50]", True), ("[2,3,5,7]", False)):
        assert box_forms.has_other_form(text, "bbox") == is_read


def test_training_reads_the_policys_own_tag_letter_for_letter() -> None:
    for inside in INSIDE[3:]:
        assert parse_boxes(f"<bbox>{inside}</bbox>")[0] == ((CAR,) if inside == "(20,10),(100,50)" else ())


def test_places_are_those_of_the_text() -> None:
    text = "ﬁrst（㎝）［20，10，100，50］ then <bbox>20 10 100 50</bbox>."  # NFKC would make it longer
    assert [text[one.start : one.end] for one in box_forms.written(text, "bbox")] == [
        "［20，10，100，50］",
        "<bbox>20 10 100 50</bbox>",
    ]


PIECES = ["[", "]", "{", "<", "1", "1 ", "1,", "[1,", "[1,2]", "(1,2),", "[20,10,100,50]", "[[20,10],", "<a b=", "x1=1,", "x1=1 y1=2 ", "(20,10) to ",
          '"box":[', '"box":"', '"box": {', "<bbox>", "<box>20,10,100,50</box>", "1,\n", "[1,\n", "（", "【1，", "\\left", "1e", "<step>1,2,3,4</step>"]  # fmt: skip


def _lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python `call` runs."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> Callable[..., object]:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("piece", PIECES)
def test_four_times_the_text_is_four_times_the_work(piece: str) -> None:
    def work(length: int) -> int:
        text = piece * (length // len(piece))
        return _lines_run(lambda: (box_forms.written(text, "bbox", "model", SIZES), box_forms.in_one_line(text)))

    work(200)  # fills caches
    assert work(2400) <= 4.5 * work(600) + 500
    long = piece * (60_000 // len(piece))  # minutes if a pattern were quadratic
    assert box_forms.written(long, "bbox_2d") is not None and box_forms.in_one_line(long)
