"""One table of colours: what figures and the report show of a method, and that its text can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval import figure_style, report
from eval.colours import CONTRAST, METHOD_COLOURS, PANELS, SPARE, as_text, colours, contrast
from eval.results import Result


def test_contrast_is_wcags() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#ffffff", "#777777") == contrast("#777777", "#ffffff")


def test_a_listed_method_has_its_colour_wherever_it_stands_and_no_other_one_takes_it() -> None:
    assert colours(["fgrpo", "sft"]) == colours(["sft", "fgrpo"])[::-1] == ["#0072B2", "#8c8c8c"]
    beside = colours(["own", "grpo-multiplicative", "another"])
    assert beside[1] == METHOD_COLOURS["grpo-multiplicative"] == SPARE[0]
    assert beside == [SPARE[2], SPARE[0], SPARE[1]], "unlisted ones by name"
    assert colours(["another", "own"]) == [SPARE[0], SPARE[1]]
    many = colours([f"m{n}" for n in range(7)])
    assert many[:5] == list(SPARE) and many[5:] == list(SPARE[:2])


@pytest.mark.parametrize("panel", PANELS.values())
@pytest.mark.parametrize("tint", [*METHOD_COLOURS.values(), *SPARE])
def test_text_in_a_methods_colour_can_be_read(tint: str, panel: str) -> None:
    text = as_text(tint, panel)
    assert re.fullmatch("#[0-9a-f]{6}", text) and contrast(text, panel) >= CONTRAST
    assert contrast(tint, panel) < CONTRAST or text == tint.lower()


def test_the_report_has_the_colours_of_the_figures(tmp_path: Path) -> None:
    shown = [Result(name, name.upper(), tmp_path, {}) for name in ("grpo-t", "fgrpo", "sft")]
    page = report.render(
        title="t", subtitle="", cards=[], tables=[], more_tables=[], comparisons=[], more_comparisons=[], paper=[],
        figures=[], judges=[], world=True, other_kind="", examples=[], examples_note="", benchmarks=[], filters=[],
        columns=report._columns(shown, 2),
    )  # fmt: skip
    for key, tint in zip("abc", colours([result.name for result in shown]), strict=True):
        assert re.search(rf"\.of-{key} rect[^{{]*{{ stroke:{tint};", page)
        assert (
            f"--{key}:{as_text(tint, PANELS['light'])};" in page and f"--{key}:{as_text(tint, PANELS['dark'])};" in page
        )
    assert [figure_style.colour(result.name) for result in shown] == colours([result.name for result in shown])


def test_a_constraint_without_a_colour_takes_none_that_a_reward_declares() -> None:
    declared = {
        figure_style.constraint_style(name)[1] for name in ("consistency", "spatial_grounding", "semantic_grounding")
    }
    free = {figure_style.constraint_style("evidence_margin", position)[1] for position in range(8)}
    assert len(declared) == 3 and free and not free & declared
