"""Spatial grounding: Eq. 1 with its options, frames, what is not applicable, and bad boxes."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgrpo.boxes import ciou, match
from fgrpo.response import parse
from fgrpo.types import Box, Frame, Sample, Score
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
    no_judge: JudgeSet,
    source: str = "vgr",
    image: str = "missing.png",
    **more: object,
) -> Score:
    sample = Sample(f"{source}/train/0", (image,), "?", ("left", "right"), "left", boxes)
    context = RewardContext(no_judge, **more)  # type: ignore[arg-type]
    (got,) = asyncio.run(REWARD([RewardItem("r", sample, parse(text))], context))
    return got


TEXT = "<think>It is at <bbox>[56,28,112,84]</bbox>.</think><answer>right</answer>"


def test_states(no_judge: JudgeSet) -> None:
    truth = (Box(56, 28, 112, 84, "model"),)
    assert run(TEXT, truth, no_judge, mask="correct").value == 1.0  # masked by annotation, not by correctness
    assert run(TEXT, None, no_judge).state == "not_applicable"
    assert run(TEXT, (), no_judge).state == "not_applicable"
    assert run(TEXT, (Box(9, 9, 1, 1),), no_judge).state == "not_applicable"
    assert run(TEXT, (*truth, Box(9, 9, 1, 1)), no_judge).value == 1.0  # an invalid annotation is left out
    assert run(TEXT, truth, no_judge, source="viscot", boxes_from=("vgr", "treevgr")).state == "not_applicable"
    assert run(TEXT, truth, no_judge, source="viscot").value == 1.0
    for nothing in (
        "<think>no box</think><answer>left</answer>",
        "<think><bbox>[9,9,1,1]</bbox></think>",
        "",
        "no tags",
    ):
        assert run(nothing, truth, no_judge).value == 0.0


def test_boxes_in_another_form_are_named(no_judge: JudgeSet) -> None:
    """A 0 for boxes that are there and not read says so; the form that the model's file names is read."""
    text = '<think>It is at {"bbox_2d": [56, 28, 112, 84]}.</think><answer>right</answer>'
    truth = (Box(56, 28, 112, 84, "model"),)
    got = run(text, truth, no_judge)
    assert (got.value, got.reason, got.detail["unread"]) == (0.0, "boxes_not_read", 1)
    mixed = run(TEXT.replace("</think>", " [10,20,30,40]</think>"), truth, no_judge)
    assert (mixed.value, mixed.reason, mixed.detail["unread"]) == (1.0, "", 1)
    sample = Sample("vgr/train/0", ("missing.png",), "?", ("left", "right"), "left", truth)
    items = [RewardItem("r", sample, parse(text, box_tag="bbox_2d"))]
    (read,) = asyncio.run(REWARD(items, RewardContext(no_judge, box_tag="bbox_2d")))
    assert read.value == 1.0 and "unread" not in read.detail
    items = [RewardItem("r", sample, parse(text))]
    (every,) = asyncio.run(REWARD(items, RewardContext(no_judge, every_form=True)))
    assert (every.value, every.reason) == (1.0, "") and "unread" not in every.detail


def test_numbers_that_are_no_boxes_cost_nothing(no_judge: JudgeSet, tmp_path: Path) -> None:
    """Eq. 1 of the evaluation divides by the boxes alone; where the image is known, by those that fit in it."""
    Image.new("RGB", (1288, 728)).save(tmp_path / "p.png")
    sample = Sample("vgr/train/0", (str(tmp_path / "p.png"),), "?", ("a",), "a", (Box(20, 10, 100, 50, "model"),))
    for more, value in (
        ("", 1.0),
        (" The shelves hold [2, 3, 5, 7] cups.", 1.0),
        (" The years [1490, 1285, 1500, 1400].", 1.0),
        (" The bus is at [200, 100, 400, 300].", 0.5),
    ):
        text = f"<think>The car is at <bbox>[20,10,100,50]</bbox>.{more}</think><answer>a</answer>"
        for bounds in ({}, {"box_frame": "original"}):
            context = RewardContext(no_judge, every_form=True, **bounds)  # type: ignore[arg-type]
            (got,) = asyncio.run(REWARD([RewardItem("r", sample, parse(text))], context))
            assert got.value == pytest.approx(value, abs=0.01), more


def test_frames(no_judge: JudgeSet, tmp_path: Path) -> None:
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
        got = run(text, (truth,), no_judge, **bounds)  # type: ignore[arg-type]
        assert got.value == pytest.approx(1.0), truth
        assert got.detail["gt"][0] == pytest.approx([70, 28, 140, 56])


def test_a_picture_that_cannot_be_read_is_a_failure(no_judge: JudgeSet, tmp_path: Path) -> None:
    truth = (Box(0, 0, 1, 1, "unit"),)
    assert run(TEXT, truth, no_judge).state == "failed"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    assert run(TEXT, truth, no_judge, image=str(tmp_path / "broken.png")).state == "failed"
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    assert run(TEXT, truth, no_judge, image=str(tmp_path / "thin.png")).state == "failed"


def reference(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """CIoU (Zheng et al. 2019, Eqs. 7 to 11) by another way: overlap by the axes' intervals, centres and corners as vectors.

    Degenerate boxes as documented: an empty or reversed box overlaps nothing and has sides of 0; two equal points are no
    distance apart.
    """
    p, q = np.array(a, float).reshape(2, 2), np.array(b, float).reshape(2, 2)
    sides_p, sides_q = np.maximum(p[1] - p[0], 0), np.maximum(q[1] - q[0], 0)
    shared = np.prod(np.maximum(np.minimum(p[1], q[1]) - np.maximum(p[0], q[0]), 0))
    if 0 in (*sides_p, *sides_q):
        shared = 0.0
    union = np.prod(sides_p) + np.prod(sides_q) - shared
    overlap = shared / union if union else 0.0
    corners = np.stack([*p, *q])
    diagonal = np.linalg.norm(corners.max(0) - corners.min(0))
    distance = (np.linalg.norm(p.mean(0) - q.mean(0)) / diagonal) ** 2 if diagonal else 0.0
    # arctan(w / h); a box without height but with width is as flat as can be
    angles = [math.atan(w / h) if h else (math.pi / 2 if w else 0.0) for w, h in (sides_p, sides_q)]
    v = (2 / math.pi * (angles[0] - angles[1])) ** 2
    return float(overlap - distance - (v * v / (1 - overlap + v) if v else 0.0))


def some_boxes(rng: random.Random, count: int, degenerate: float = 0.0) -> list[tuple[float, ...]]:
    out: list[tuple[float, ...]] = []
    while len(out) < count:
        x1, y1, x2, y2 = (rng.choice([0.0, 10.0, rng.uniform(0, 100)]) for _ in range(4))
        kind = rng.random()
        if kind < degenerate / 3:
            x2 = x1  # no width
        elif kind < degenerate * 2 / 3:
            x1, y1, x2, y2 = max(x1, x2), max(y1, y2), min(x1, x2), min(y1, y2)  # reversed
        elif kind < degenerate:
            x2, y2 = x1, y1  # a point
        else:
            x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
            if x1 == x2 or y1 == y2:
                continue
        out.append((x1, y1, x2, y2))
    return out


def test_ciou_is_an_independent_formula_on_random_and_degenerate_boxes() -> None:
    rng = random.Random(0)
    boxes = some_boxes(rng, 3000, degenerate=0.4)
    for a, b in zip(boxes, [*boxes[1:], boxes[0]], strict=True):
        for x, y in ((a, b), (a, a)):
            assert ciou(x, y) == pytest.approx(reference(x, y), abs=1e-9), (x, y)


@pytest.mark.slow  # imports torch
def test_ciou_is_torchvisions() -> None:
    """A third party's CIoU on boxes that are boxes (it adds 1e-7 to its denominators)."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchvision.ops").complete_box_iou
    rng = random.Random(1)
    one, two = some_boxes(rng, 60), some_boxes(rng, 60)
    value = theirs(torch.tensor(one, dtype=torch.float64), torch.tensor(two, dtype=torch.float64))
    ours = [[ciou(a, b) for b in two] for a in one]
    assert np.allclose(value.numpy(), ours, atol=1e-6)


@pytest.mark.parametrize("degenerate", [0.0, 0.5])
def test_matching_is_optimal_up_to_six_by_six(degenerate: float) -> None:
    rng = random.Random(2)
    for n, m in itertools.product(range(1, 7), repeat=2):
        pred, gt = some_boxes(rng, n, degenerate), some_boxes(rng, m, degenerate)
        table = np.array([[ciou(p, g) for g in gt] for p in pred])
        wide = table if n <= m else table.T
        rows = np.arange(min(n, m))
        best = max(wide[rows, list(columns)].sum() for columns in itertools.permutations(range(max(n, m)), min(n, m)))
        found = match(pred, gt)
        assert sum(value for _, _, value in found) == pytest.approx(best, abs=1e-9)
        assert len({i for i, _, _ in found}) == len({j for _, j, _ in found}) == min(n, m)
        positive = sum(max(0.0, value) for _, _, value in found)
        assert score(pred, gt) == pytest.approx(positive / max(n, m))


BAD_BOXES = {
    "no width": "[10,10,10,40]",
    "no area": "[10,10,10,10]",
    "reversed": "[40,40,10,10]",
    "nan": "[nan,10,20,30]",
    "infinite": "[1e999,10,20,30]",
    "three numbers": "[10,10,20]",
    "five numbers": "[10,10,20,20,30]",
    "words": "[left,top,right,bottom]",
    "empty": "",
}


@pytest.mark.parametrize("bad", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_a_predicted_box_that_is_none_is_counted_and_costs_nothing_else(bad: str, no_judge: JudgeSet) -> None:
    truth = (Box(56, 28, 112, 84, "model"),)
    broken = f"<bbox>{bad}</bbox>"
    got = run(TEXT.replace("</think>", f" {broken}</think>"), truth, no_judge)
    assert (got.value, got.detail["dropped"]) == (1.0, 1)
    alone = run(f"<think>{broken}</think><answer>right</answer>", truth, no_judge)
    assert (alone.value, alone.detail["dropped"]) == (0.0, 1)
    json.dumps(got.to_dict(), allow_nan=False)


@pytest.mark.parametrize("numbers", [(9, 9, 1, 1), (5, 5, 5, 9), (math.nan, 0, 1, 1), (0, 0, math.inf, 1)])
def test_an_annotated_box_that_is_none_is_left_out_and_counted(numbers: tuple[float, ...], no_judge: JudgeSet) -> None:
    bad, good = Box(*numbers, frame="model"), Box(56, 28, 112, 84, "model")
    got = run(TEXT, (good, bad), no_judge)
    assert (got.value, got.detail["gt_dropped"]) == (1.0, 1)
    got = run(TEXT, (bad,), no_judge)
    assert got.state == "not_applicable" and "none of the 1 annotated boxes" in got.reason


@pytest.mark.parametrize("frame", ["unit", "thousand", "original"])
def test_numbers_that_leave_the_floats_when_converted_are_no_box(
    frame: Frame, no_judge: JudgeSet, tmp_path: Path
) -> None:
    Image.new("RGB", (2000, 1120)).save(tmp_path / "p.png")
    far = "<think><bbox>[0,0,1.7e308,1.7e308]</bbox><bbox>[0,0,1e-320,1]</bbox></think><answer>left</answer>"
    truth = (Box(0, 0, 1, 1, "unit"), Box(0, 0, 1.7e308, 1.7e308, frame))
    sample = Sample("vgr/train/0", (str(tmp_path / "p.png"),), "?", (), "left", truth)
    item = RewardItem("r", sample, parse(far, frame=frame))
    (got,) = asyncio.run(REWARD([item], RewardContext(no_judge, max_pixels=12544 * 100, box_frame=frame)))
    assert (got.state, got.value) == ("scored", pytest.approx(0.0, abs=1e-6))
    assert got.detail["dropped"] + len(got.detail["pred"]) == 2
    json.dumps(got.to_dict(), allow_nan=False)


def test_boxes_outside_the_picture(no_judge: JudgeSet, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (112, 112)).save(path)
    truth = Box(56, 28, 112, 84, "original")
    text = "<think><bbox>[56,28,112,84]</bbox> <bbox>[100,100,300,300]</bbox> <bbox>[500,500,600,600]</bbox></think>"
    got = run(text, (truth,), no_judge, image=str(path))
    assert got.value == pytest.approx(1 / 3) and got.detail["outside"] == 2  # surplus boxes cost, and are counted
    beyond = Box(200, 200, 300, 300, "original")
    got = run(TEXT, (truth, beyond), no_judge, image=str(path))
    assert (got.value, got.detail["gt_dropped"], got.detail["outside"]) == (1.0, 1, 0)
    assert run(TEXT, (beyond,), no_judge, image=str(path)).state == "not_applicable"
    assert run(TEXT, (Box(56, 28, 112, 84, "model"),), no_judge).detail["outside"] is None  # no picture to look at


def test_a_box_in_an_image_that_is_not_there_is_a_failure(no_judge: JudgeSet, tmp_path: Path) -> None:
    for n in range(2):
        Image.new("RGB", (56, 56)).save(tmp_path / f"{n}.png")
    images = tuple(str(tmp_path / f"{n}.png") for n in range(2))
    sample = Sample("vgr/train/0", images, "?", (), "left", (Box(0.5, 0.5, 1, 1, "unit"),), {"box_image": 7})
    (got,) = asyncio.run(REWARD([RewardItem("r", sample, parse(TEXT))], RewardContext(no_judge)))
    assert got.state == "failed" and "box in image 7, and 2 images" in got.reason


def test_ten_thousand_boxes(no_judge: JudgeSet) -> None:
    """Read, matched and scored; the right one among them counts as one of ten thousand."""
    many = "".join(f"<bbox>[{n},{n},{n + 5},{n + 5}]</bbox>" for n in range(9_999))
    truth = (Box(20_000, 0, 20_100, 100, "model"), Box(20_000, 200, 20_100, 300, "model"))
    text = f"<think>{many}<bbox>[20000,0,20100,100]</bbox></think><answer>left</answer>"
    got = run(text, truth, no_judge)
    assert len(got.detail["pred"]) == 10_000
    assert len(got.detail["pairs"]) == 2 and [9_999, 0, 1.0] in got.detail["pairs"]
    assert got.value == pytest.approx(1 / 10_000, abs=1e-6)
