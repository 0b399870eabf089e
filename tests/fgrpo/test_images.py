"""Images: upright and of one size everywhere, and the processor's bounds without loading it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgrpo import image_files
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import data_url, file_url, image_size, image_tokens, open_rgb, portable
from fgrpo.policy import backbone
from fgrpo.policy.model_files import pixel_bounds

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"


def test_an_image_on_its_side_has_one_size(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (56, 112)).save(path, exif=exif)
    assert image_size(str(path)) == open_rgb(path).size == (112, 56)
    assert image_tokens(str(path), PixelBounds(784, 12544, 28)) == 2 * 4


def test_bounds_are_the_processors_own(tmp_path: Path) -> None:
    from fgrpo.policy import loading

    size = loading.load_processor(BACKBONE).image_processor.size
    assert pixel_bounds(BACKBONE) == (size["shortest_edge"], size["longest_edge"], 28) == (784, 12544, 28)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    assert pixel_bounds(tmp_path) == (3136, 12845056, 28)  # as Qwen's own repositories write it


def test_a_served_model_has_the_published_bounds_and_a_broken_folder_is_an_error(tmp_path: Path) -> None:
    assert pixel_bounds("nobody/has-this") == backbone.default().pixels == (3136, 12845056, 28)
    with pytest.raises(UserError, match="has none of"):
        pixel_bounds(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
    with pytest.raises(UserError, match="does not state the least and the most pixels"):
        pixel_bounds(tmp_path)


@pytest.mark.parametrize("read", [portable, data_url, file_url, open_rgb])
def test_an_image_that_cannot_be_read_is_named_with_one_advice(read: Any, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("<html>")
    for name in ("missing.png", "text.jpg", "nul\0.png"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            read(str(tmp_path / name))


def test_an_image_with_too_many_pixels_is_not_to_be_downloaded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match=r"save it smaller, or remove its sample$"):
        open_rgb(tmp_path / "x.png")


def test_a_path_with_a_nul_names_no_image(tmp_path: Path) -> None:
    with pytest.raises(image_files.ImageProblem, match="holds a NUL") as problem:
        image_files.path_below(tmp_path, "a\0.png")
    assert problem.value.reason == "image_path_leads_out"
