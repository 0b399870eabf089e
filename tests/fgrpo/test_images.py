"""Pictures: upright and of one size for everybody, and the processor's bounds without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fgrpo import boxes
from fgrpo.errors import UserError
from fgrpo.images import image_size, image_tokens, open_rgb, pixel_bounds

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"


def test_a_picture_on_its_side_has_one_size(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (56, 112)).save(path, exif=exif)
    assert image_size(str(path)) == open_rgb(path).size == (112, 56)
    assert image_tokens(str(path), (784, 12544)) == 2 * 4 + 2


def test_bounds_are_the_processors_own(tmp_path: Path) -> None:
    from fgrpo.policy import loading

    size = loading.load_processor(BACKBONE).image_processor.size
    assert pixel_bounds(BACKBONE) == (size["shortest_edge"], size["longest_edge"]) == (784, 12544)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    assert pixel_bounds(tmp_path) == (3136, 12845056)  # as Qwen's own repositories say it


def test_a_served_model_has_the_published_bounds_and_a_broken_folder_is_said_so(tmp_path: Path) -> None:
    assert pixel_bounds("nobody/has-this") == (boxes.MIN_PIXELS, boxes.MAX_PIXELS)
    with pytest.raises(UserError, match="has none of"):
        pixel_bounds(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
    with pytest.raises(UserError, match="does not say"):
        pixel_bounds(tmp_path)
