"""The anchoring loss against hand-worked numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from fgrpo.boxes import PixelBounds
from fgrpo.policy.attention_sums import Sums
from fgrpo.schema_anchor import AnchorLoss
from fgrpo.training.anchoring import loss_of, mean_log_p, shares_of, target
from fgrpo.types import Box, Sample

W = torch.tensor([0.0, 1.0, 0.5, 0.0])
P = torch.tensor([0.1, 0.4, 0.2, 0.3])


def options(**more: Any) -> AnchorLoss:
    return AnchorLoss(**more)


def test_target_is_the_share_of_the_area_with_a_floor() -> None:
    assert torch.allclose(target(W, options(floor=0.0)), torch.tensor([0, 2 / 3, 1 / 3, 0]))
    assert torch.allclose(target(W, options(floor=0.2)), torch.tensor([0.05, 0.8 * 2 / 3 + 0.05, 0.8 / 3 + 0.05, 0.05]))
    assert torch.allclose(target(W, options(floor=0.0, cells="touched")), torch.tensor([0, 0.5, 0.5, 0]))
    assert target(2 * W, options()).sum() == pytest.approx(1.0)


def test_kl_and_mass_by_hand() -> None:
    kl = 2 / 3 * math.log(2 / 3 / 0.4) + 1 / 3 * math.log(1 / 3 / 0.2)
    assert float(loss_of(P.log(), W, options(floor=0.0))) == pytest.approx(kl, abs=1e-6)
    assert float(loss_of(target(W, options()).log(), W, options())) == pytest.approx(0.0, abs=1e-6)
    assert float(loss_of(P.log(), W, options(loss="mass"))) == pytest.approx(-math.log(0.4 + 0.5 * 0.2), abs=1e-6)
    assert float(loss_of(P.log(), W, options(loss="mass", cells="touched"))) == pytest.approx(-math.log(0.6), abs=1e-6)
    assert float(loss_of(P.log(), 3 * W, options(loss="mass"))) == pytest.approx(-math.log(0.6), abs=1e-6), "at most 1"


def test_zero_attention_on_an_empty_cell_gives_no_nan() -> None:
    log_p = torch.tensor([-1e4, math.log(0.7), math.log(0.3), -1e4], requires_grad=True)
    for given in (options(floor=0.0), options(loss="mass"), options(loss="mass", cells="touched")):
        log_p.grad = None
        loss_of(log_p, W, given).backward()
        assert log_p.grad is not None and bool(torch.isfinite(log_p.grad).all())


def test_heads_and_layers_are_averaged() -> None:
    one, two = torch.tensor([[0.1, 0.9], [0.3, 0.7]]), torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    none = torch.zeros(2, 1)
    sums = [Sums(none, none, none, part.log()[:, None]) for part in (one, two)]
    assert torch.allclose(mean_log_p(sums).exp(), torch.tensor([0.275, 0.725]))


def test_shares_follow_the_image_of_each_box(tmp_path: Path) -> None:
    for n in range(2):
        Image.new("RGB", (56, 84)).save(tmp_path / f"{n}.png")
    images = tuple(str(tmp_path / f"{n}.png") for n in range(2))
    bounds = PixelBounds(1, 10**6, 28)
    boxes = (Box(0, 0, 28, 28, "original"), Box(28, 42, 56, 84, "original"))
    sample = Sample("a/b/1", images, "q", (), "x", boxes, {"box_images": [0, 1]})
    assert shares_of(sample, bounds) == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0, 1]]
    assert shares_of(Sample("a/b/2", images, "q", (), "x", None), bounds) == []
    assert shares_of(Sample("a/b/3", images, "q", (), "x", (Box(9, 9, 3, 3, "original"),)), bounds) == []


@pytest.mark.parametrize(
    "wrong", [{"loss": "l2"}, {"layers": []}, {"layers": "first"}, {"layers": [-1]}, {"floor": 1.0}]
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnchorLoss(**wrong)
