"""What a judge reads: boxes and points of every form, in the judge's own frame."""

from __future__ import annotations

import pytest

from fgrpo.response import every_box
from rewards.boxes_in_text import BoxNotation, without_tags

ONE = BoxNotation("bbox", "model", ((200, 100),))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("<bbox>[20,10,100,50]</bbox>", "[100,100,500,500]"),
        ("[20, 10, 100, 50]", "[100,100,500,500]"),
        ("(20,10,100,50)", "[100,100,500,500]"),
        ('{"bbox_2d": [20, 10, 100, 50], "label": "car"}', '{[100,100,500,500], "label": "car"}'),
        ("<|box_start|>(20,10),(100,50)<|box_end|>", "[100,100,500,500]"),
        ("<box>20 10 100 50</box>", "[100,100,500,500]"),
        ("<box2>[[20, 10, 100, 50]]</box2>", "[100,100,500,500]"),
        ('{"point_2d": [20, 10]}', "{[100,100]}"),
        ("<bbox>[9,9,9,1]</bbox> and [9,9,9,1]", "[9,9,9,1] and [9,9,9,1]"),  # no boxes: their own numbers
        ("(5, 6), [1, 2, 3] and f(a, b)", "(5, 6), [1, 2, 3] and f(a, b)"),
        ("<bbox>[20,10,100,50] unclosed", "<bbox>[20,10,100,50] unclosed"),
        ("<box label='car'>[20,10,100,50]</box>", "<box label='car'>[100,100,500,500]</box>"),  # attributes stay
        ("<bbox>[20,10,100,50],[40,20,80,60]</bbox>", "[100,100,500,500],[200,200,400,600]"),
        ("<bbox>[20,10,100,50],[9,9,9,9]</bbox>", "[100,100,500,500],[9,9,9,9]"),
        ("[10%, 20%, 50%, 60%]", "[100,200,500,600]"),
    ],
)
def test_every_form_is_shown_in_the_judges_frame(written: str, shown: str) -> None:
    assert ONE.rewrite(f"The car at {written} is red.", "thousand") == f"The car at {shown} is red."


def test_points_of_a_model_that_points_are_converted() -> None:
    points = BoxNotation("point", "model", ((200, 100),))
    assert (
        points.rewrite("The cup (20, 10) is left of [100,50].", "thousand") == "The cup [100,100] is left of [500,500]."
    )
    assert points.rewrite("At [20, 10, 100, 50].", "unit") == "At [0.100,0.100,0.500,0.500]."
    assert points.rewrite("At (20, 10).", "model") == "At (20, 10)."


def test_a_bare_box_is_given_for_each_picture_that_it_fits_in() -> None:
    two = BoxNotation("bbox", "model", ((200, 100), (100, 100)))
    assert (
        two.rewrite("[20, 10, 100, 50]", "thousand")
        == "[100,100,500,500] (picture 1) or [200,100,1000,500] (picture 2)"
    )
    assert two.rewrite("[20, 10, 150, 50]", "thousand") == "[100,100,750,500] (picture 1)"
    assert two.rewrite("<bbox>[20,10,300,50]</bbox>", "thousand") == "[20,10,300,50] (pixels beyond every picture)"
    assert two.rewrite("(20,10,300,50)", "thousand") == "(20,10,300,50)", (
        "nothing says that it is a box, and it fits in no picture"
    )


WIDE = (1288, 728)
NO_BOXES = """
The counts per shelf are [2, 3, 5, 7].
The counts per shelf are [20, 30, 50, 70].
The rows hold (1, 2, 4, 8) apples.
The rows hold (10, 20, 40, 80) apples.
The baskets carry [20, 30, 50, 70] small oranges.
There are [20, 30, 50, 70] people.
The years [1990, 1985, 2000, 2005]
The years are [20, 30, 50, 70].
chart values (5, 8, 12, 20)
chart values (50, 80, 120, 200)
values in the chart: [10, 20, 50, 60]
The prices of the items are [10, 20, 40, 80].
[10, 20, 40, 80] are the prices
It measures (10, 20, 40, 80) mm.
RGBA color (0, 100, 200, 255)
rgba(0, 100, 200, 255)
{"color": [0, 100, 200, 255]}
{"counts": [20, 30, 50, 70]}
Quaternion (0, 0, 0.7, 0.7)
f(1, 2, 3, 4)
g(10, 20, 100, 200)
np.array([10, 20, 100, 200])
see pictures [1, 2, 3, 4]
see pictures [10, 20, 30, 40]
The options are [100, 200, 300, 400].
option B (100, 200, 300, 400)
tensor shape (1, 3, 224, 224)
matrix [[20, 10], [100, 50]]
The series [10, 25, 31, 44, 52, 61, 78, 90]
[10, 25, 31, 44, 52, 61, 78, 90]
The points (20, 10), (100, 50) lie on a line.
(100, 10), (20, 50)
the shares are [10%, 20%, 30%, 40%]
[1290, 20, 1400, 300]
[20, 10, 100, 50, 90]
[20, 10, 100, 50)
x1=1, y1=2, x2=3, y2=4
颜色是（10，20，200，255）
[20, 30, 50, 70]个
<step>1, 2, 3, 4</step>
<step>[120, 30, 400, 300]</step>
<time>10,11,12,13</time>
<sup>1,2,3,4</sup>
<ref>1,2,3,4</ref>
<correct>10,20,100,200</correct>
<background>[10,20,100,200]</background>
<preference>10,20,100,200</preference>
{"bbox_2d": null}
{"bbox_2d": "none"}
The vector <20, 10, 100, 50>
padding (10, 20, 100, 50)
<box>the car</box>
(20, 10) and a red [5]
"""


@pytest.mark.parametrize("text", NO_BOXES.strip().splitlines())
def test_other_numbers_stay_as_written_and_are_no_boxes(text: str) -> None:
    assert BoxNotation("bbox", "model", (WIDE,)).rewrite(text, "thousand") == text
    assert every_box(text, sizes=(WIDE,)) == ((), 0)


@pytest.mark.parametrize(
    "text",
    ["interval [3, 5]", "interval [30, 50]", "on [2019, 2020]", "row (1, 2)", "row (10, 20)", "see picture (1, 2)", "size (640, 480)",
     "f(100, 200)", "[30, 50] cm", "The scores are (30, 20).", "[1, 2, 3]"],
)  # fmt: skip
def test_pairs_that_are_no_points_stay_as_written(text: str) -> None:
    assert BoxNotation("point", "model", (WIDE,)).rewrite(text, "thousand") == text


@pytest.mark.parametrize(
    "text",
    ["The car [20,10,100,50] honks.", "The image [20,10,100,50] shows a car.", "The number on the shirt [20,10,100,50] is 7.", "values at [20,10,100,50]",
     "The colors of the car [20,10,100,50] match.", "the panels on the roof [20,10,100,50]", "coordinate values: [20,10,100,50]", "Answer: [20,10,100,50]",
     "car(20,10,100,50)", "汽车位于（20，10，100，50）。", "<li>[20,10,100,50]</li>", "<region>[20,10,100,50]</region>", "bbox(20,10,100,50)"],
)  # fmt: skip
def test_boxes_among_words_are_converted(text: str) -> None:
    assert "[16,14,78,69]" in BoxNotation("bbox", "model", (WIDE,)).rewrite(text, "thousand")
    assert every_box(text, sizes=(WIDE,))[0] != ()


def test_a_box_without_a_mark_is_of_the_frame_that_the_model_writes() -> None:
    """The same numbers are a box in one frame and none in another."""
    unit, thousand, pixels = (BoxNotation("bbox", frame, (WIDE,)) for frame in ("unit", "thousand", "model"))
    assert unit.rewrite("[.1,.1,.5,.5]", "thousand") == "[100,100,500,500]"
    assert unit.rewrite("[20,10,100,50]", "thousand") == "[20,10,100,50]"
    assert unit.rewrite("quaternion (0, 0, 0.7, 0.7)", "thousand") == "quaternion (0, 0, 0.7, 0.7)"
    assert thousand.rewrite("[20,10,100,50]", "unit") == "[0.020,0.010,0.100,0.050]"
    assert pixels.rewrite("[.1,.1,.5,.5]", "thousand") == "[.1,.1,.5,.5]"


def test_percentages_are_of_the_image_whatever_the_frame() -> None:
    for frame in ("model", "unit", "thousand", "original"):
        notation = BoxNotation("bbox", frame, (WIDE,))  # type: ignore[arg-type]
        assert notation.rewrite("<box>10%,20%,50%,60%</box>", "thousand") == "[100,200,500,600]"
    unknown = BoxNotation("bbox", "model", ())
    assert unknown.rewrite("<box>10%,20%,50%,60%</box>", "thousand") == "[10%,20%,50%,60%]", "no size: as written"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<bbox>20,10,100,50</bbox>", "20,10,100,50"),
        ("<bbox>(20,10),(100,50)</bbox>", "(20,10),(100,50)"),
        ("<bounding_box_of_the_car>[1,2,3,4]</bounding_box_of_the_car>", "[1,2,3,4]"),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "(1,2),(3,4)"),
        ("<point>(1,2)</point>", "(1,2)"),
        ("<bbox>[9,9,9,1]</bbox>", "[9,9,9,1]"),
        ("<step>1,2,3,4</step> <box>the car</box>", "<step>1,2,3,4</step> <box>the car</box>"),
    ],
)
def test_tags_of_boxes_and_points_are_taken_off(text: str, shown: str) -> None:
    assert without_tags(f"A {text} B") == f"A {shown} B"
