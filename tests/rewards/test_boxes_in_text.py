"""What a judge reads: boxes and points of every form, in the judge's own frame."""

from __future__ import annotations

import pytest

from rewards.boxes_in_text import BoxNotation

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
        ("<bbox>[9,9,1,1]</bbox> and [9,9,1,1]", "[9,9,1,1] and [9,9,1,1]"),  # no boxes: their own numbers
        ("(5, 6), [1, 2, 3] and f(a, b)", "(5, 6), [1, 2, 3] and f(a, b)"),
        ("<bbox>[20,10,100,50] unclosed", "<bbox>[20,10,100,50] unclosed"),
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
    assert two.rewrite("(20,10,300,50)", "thousand") == "[20,10,300,50] (pixels beyond every picture)"
