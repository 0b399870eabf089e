"""Spatial grounding: Eq. 1 with its options, frames, what is not applicable, and bad boxes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgrpo.boxes import ciou
from fgrpo.response import parse
from fgrpo.types import Box, Sample, Score
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem
from rewards.spatial_grounding import REWARD, score

A, B, FAR = (0, 0, 10, 10), (20, 20, 30, 30), (80, 80, 90, 90)
side = st.integers(1, 50)
box = st.tuples(st.integers(0, 60), st.integers(0, 60), side, side).map(
    lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3])
)


def test_equation_1() -> None:
    assert score([A, B], [B, A]) == 1.0
    assert score([], [A]) == 0.0
    assert score([FAR], [A]) == 0.0  # CIoU below 0 counts as 0
    assert score([A], [A, B]) == 0.5  # a missing box costs
    assert score([A, FAR], [A]) == 0.5  # a surplus one too
    assert score([A, FAR], [A], "gt") == 1.0
    assert score([A], [A, B], "matched") == 1.0
    assert score([A], [A, B], "gt") == 0.5
    near = (0, 0, 10, 8)
    assert score([near], [A]) == pytest.approx(ciou(near, A))


@given(st.lists(box, max_size=5), st.lists(box, min_size=1, max_size=5))
def test_range_and_order(pred: list[tuple[int, ...]], gt: list[tuple[int, ...]]) -> None:
    values = [score(pred, gt, n) for n in ("max", "gt", "matched")]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert values[0] <= values[1] + 1e-12 and values[0] <= values[2] + 1e-12
    assert score(pred[::-1], gt[::-1]) == pytest.approx(values[0])


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        score([A], [])
    with pytest.raises(ValueError, match="normalise"):
        score([A], [A], "min")


def run(
    text: str,
    boxes: tuple[Box, ...] | None,
    nobody: JudgeSet,
    source: str = "vgr",
    image: str = "missing.png",
    **more: object,
) -> Score:
    sample = Sample(f"{source}/train/0", (image,), "?", ("left", "right"), "left", boxes)
    context = RewardContext(nobody, **more)  # type: ignore[arg-type]
    (got,) = asyncio.run(REWARD([RewardItem("r", sample, parse(text))], context))
    return got


TEXT = "<think>It is at <bbox>[56,28,112,84]</bbox>.</think><answer>right</answer>"


def test_states(nobody: JudgeSet) -> None:
    truth = (Box(56, 28, 112, 84, "model"),)
    assert run(TEXT, truth, nobody, mask="correct").value == 1.0  # masked by annotation, not by correctness
    assert run(TEXT, None, nobody).state == "not_applicable"
    assert run(TEXT, (), nobody).state == "not_applicable"
    assert run(TEXT, (Box(9, 9, 1, 1),), nobody).state == "not_applicable"
    assert run(TEXT, (*truth, Box(9, 9, 1, 1)), nobody).value == 1.0  # an invalid annotation is left out
    assert run(TEXT, truth, nobody, source="viscot", boxes_from=("vgr", "treevgr")).state == "not_applicable"
    assert run(TEXT, truth, nobody, source="viscot").value == 1.0
    for nothing in (
        "<think>no box</think><answer>left</answer>",
        "<think><bbox>[9,9,1,1]</bbox></think>",
        "",
        "no tags",
    ):
        assert run(nothing, truth, nobody).value == 0.0


def test_frames(nobody: JudgeSet, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (200, 100)).save(path)
    bounds = {"min_pixels": 784, "max_pixels": 12544, "image": str(path)}
    # smart_resize of 200 x 100 within 12544 pixels: beta = sqrt(20000 / 12544), so 140 x 56 pixels
    unit = Box(0.5, 0.5, 1.0, 1.0, "unit")
    text = "<think><bbox>[70,28,140,56]</bbox></think><answer>left</answer>"
    for truth in (
        unit,
        Box(500, 500, 1000, 1000, "thousand"),
        Box(100, 50, 200, 100, "original"),
        Box(70, 28, 140, 56, "model"),
    ):
        got = run(text, (truth,), nobody, **bounds)  # type: ignore[arg-type]
        assert got.value == pytest.approx(1.0), truth
        assert got.detail["gt"][0] == pytest.approx([70, 28, 140, 56])


def test_a_picture_that_cannot_be_read_is_a_failure(nobody: JudgeSet, tmp_path: Path) -> None:
    truth = (Box(0, 0, 1, 1, "unit"),)
    assert run(TEXT, truth, nobody).state == "failed"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    assert run(TEXT, truth, nobody, image=str(tmp_path / "broken.png")).state == "failed"
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    assert run(TEXT, truth, nobody, image=str(tmp_path / "thin.png")).state == "failed"
