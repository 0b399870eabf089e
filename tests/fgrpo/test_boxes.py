"""CIoU against an independent formula, matching against brute force, resizing against transformers' own function."""

from __future__ import annotations

import importlib
import itertools
import math
import random
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo.boxes import PixelBounds, ciou, convert, iou, match, model_size, smart_resize
from fgrpo.types import FRAMES, Box

PROCESSOR = PixelBounds(3136, 12845056, 28)  # Qwen2.5-VL's published settings

Four = tuple[float, float, float, float]
number = st.floats(-1e4, 1e4)
side = st.floats(0.01, 1e4)
box = st.tuples(number, number, side, side).map(lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3]))


def reference_ciou(a: Four, b: Four) -> float:
    """Zheng et al. 2019 in centre form (x, y, w, h), written from the paper's Eqs. 7 to 11, IoU in exact fractions."""
    (xa, ya, wa, ha), (xb, yb, wb, hb) = (
        ((p[0] + p[2]) / 2, (p[1] + p[3]) / 2, p[2] - p[0], p[3] - p[1]) for p in (a, b)
    )
    fa, fb = [Fraction(v) for v in a], [Fraction(v) for v in b]
    inter = max(Fraction(0), min(fa[2], fb[2]) - max(fa[0], fb[0])) * max(
        Fraction(0), min(fa[3], fb[3]) - max(fa[1], fb[1])
    )
    union = (fa[2] - fa[0]) * (fa[3] - fa[1]) + (fb[2] - fb[0]) * (fb[3] - fb[1]) - inter
    overlap = float(inter / union)
    c2 = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    v = 4 / math.pi**2 * (math.atan(wb / hb) - math.atan(wa / ha)) ** 2
    alpha = v / ((1 - overlap) + v) if v else 0.0
    return overlap - ((xa - xb) ** 2 + (ya - yb) ** 2) / c2 - alpha * v


@given(box, box)
@settings(max_examples=300, deadline=None)
def test_ciou_is_the_papers(a: Four, b: Four) -> None:
    value = ciou(a, b)
    assert value == pytest.approx(reference_ciou(a, b), abs=1e-6)
    assert -1.5 < value <= 1.0
    assert value == pytest.approx(ciou(b, a), abs=1e-9)
    assert value <= iou(a, b) + 1e-12


@given(box)
def test_equal_boxes(a: Four) -> None:
    assert ciou(a, a) == pytest.approx(1.0)
    assert iou(a, a) == pytest.approx(1.0)


def test_known_values() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert ciou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7 - 2 / 18)
    assert ciou((0, 0, 1, 1), (2, 0, 3, 1)) == pytest.approx(-4 / 10)
    assert ciou(Box(0, 0, 4, 4), [0, 0, 4, 4]) == 1.0


DEGENERATE = [
    (0, 0, 0, 0),
    (5, 5, 5, 5),
    (0, 0, 4, 0),
    (0, 0, 0, 4),
    (4, 4, 0, 0),
    (1e-300, 0, 2e-300, 1e-300),
    (-1e300, 0, 1e300, 1e300),
]


@pytest.mark.parametrize("a", DEGENERATE)
@pytest.mark.parametrize("b", [*DEGENERATE, (0, 0, 2, 2)])
def test_degenerate_boxes_stay_in_range(a: Four, b: Four) -> None:
    assert 0.0 <= iou(a, b) <= 1.0
    assert -1.5 < ciou(a, b) <= 1.0


def test_scale_does_not_matter() -> None:
    a, b = (0, 0, 2, 2), (1, 1, 3, 4)
    for scale in (1e-200, 1e-3, 1e3, 1e200):
        assert ciou([v * scale for v in a], [v * scale for v in b]) == pytest.approx(ciou(a, b))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
def test_coordinates_that_are_not_finite_are_refused(bad: float, place: int) -> None:
    numbers = [0.0, 0.0, 1.0, 1.0]
    numbers[place] = bad
    for call in (
        lambda: iou(numbers, (0, 0, 1, 1)),
        lambda: ciou((0, 0, 1, 1), numbers),
        lambda: match([numbers], [(0, 0, 1, 1)]),
    ):
        with pytest.raises(ValueError, match="finite"):
            call()


def test_matching_is_optimal() -> None:
    rng = random.Random(0)

    def some(n: int) -> list[Four]:
        out = []
        for _ in range(n):
            x, y = rng.uniform(0, 50), rng.uniform(0, 50)
            out.append((x, y, x + rng.uniform(1, 50), y + rng.uniform(1, 50)))
        return out

    for n, m in [*itertools.product(range(1, 5), repeat=2), (6, 6), (6, 3), (5, 6)]:
        pred, gt = some(n), some(m)
        pairs = match(pred, gt)
        small, large = sorted((n, m))
        best = max(
            sum(ciou(pred[i], gt[j]) if n <= m else ciou(pred[j], gt[i]) for i, j in enumerate(order))
            for order in itertools.permutations(range(large), small)
        )
        assert len(pairs) == small
        assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == small
        assert all(value == pytest.approx(ciou(pred[i], gt[j])) for i, j, value in pairs)
        assert sum(value for _, _, value in pairs) == pytest.approx(best)


def test_matching_with_an_empty_side() -> None:
    assert match([], [(0, 0, 1, 1)]) == match([(0, 0, 1, 1)], []) == []


def transformers_smart_resize():  # type: ignore[no-untyped-def]
    """The real function, from whichever module of transformers imports here."""
    for name in ("image_processing_pil_qwen2_vl", "image_processing_qwen2_vl"):
        try:
            return importlib.import_module(f"transformers.models.qwen2_vl.{name}").smart_resize
        except (ImportError, RuntimeError):
            sys.modules.pop("torchvision", None)
    pytest.skip("transformers' image processor of Qwen2-VL cannot be imported here")


@pytest.mark.slow  # imports transformers
def test_smart_resize_is_transformers_own() -> None:
    theirs = transformers_smart_resize()
    rng = random.Random(1)
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(3000)]
    sizes += [(14, 14), (42, 42), (70, 98), (28, 5600), (112, 112), (1, 1), (1, 200), (5000, 8000)]
    for height, width in sizes:
        for processor in (PROCESSOR, PixelBounds(784, 12544, 28)):
            bounds = processor._asdict()
            if max(height, width) / min(height, width) > 200:
                with pytest.raises(ValueError):
                    smart_resize(height, width, **bounds)
            else:
                assert smart_resize(height, width, **bounds) == theirs(height, width, **bounds)


def test_smart_resize_rounds_halves_to_even() -> None:
    assert smart_resize(70, 98, **PROCESSOR._asdict()) == (56, 112)  # 2.5 -> 2, 3.5 -> 4


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (1, 201), (402, 2)])
def test_impossible_image_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        smart_resize(*size, **PROCESSOR._asdict())


def test_conversions_between_all_frames() -> None:
    original = (640, 480)
    seen = model_size(original, *PROCESSOR)
    assert seen == (644, 476)
    for one, other in itertools.product(FRAMES, repeat=2):
        there = convert(convert(Box(64, 48, 320, 240, "original"), one, original, seen), other, original, seen)
        back = convert(there, "original", original, seen)
        assert there.frame == other
        assert tuple(back) == pytest.approx((64, 48, 320, 240))
    assert tuple(convert(Box(64, 48, 320, 240, "original"), "unit", original, seen)) == pytest.approx(
        (0.1, 0.1, 0.5, 0.5)
    )
    assert tuple(convert(Box(0.1, 0.1, 0.5, 0.5, "unit"), "thousand", original, seen)) == pytest.approx(
        (100, 100, 500, 500)
    )
    assert tuple(convert(Box(100, 100, 500, 500, "thousand"), "model", original, seen)) == pytest.approx(
        (64.4, 47.6, 322, 238)
    )
