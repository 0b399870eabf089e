"""Images: upright and of one size everywhere, and the processor's bounds without loading it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgrpo import image_files, images
from fgrpo.boxes import PixelBounds, model_size
from fgrpo.byte_cache import ByteCache
from fgrpo.errors import UserError
from fgrpo.images import data_url, file_url, image_size, image_tokens, open_rgb, portable
from fgrpo.policy import backbone
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema_base import Pixels

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


@pytest.mark.parametrize(
    ("least", "most", "advice"),
    [
        (1000, 1200, "pixels.max to 3136 or more, or pixels.min to 784 or less"),
        (1000, 1000, "pixels.max to 3136"),
        (1500, 1500, "pixels.max to 3136"),
        (1568, 1568, "pixels.max to 3136"),  # two tokens: a square image has one, or four
        (3137, 7055, "pixels.max to 7056 or more, or pixels.min to 3136 or less"),
        (589_824, 589_824, "pixels.max to 614656 or more, or pixels.min to 571536 or less"),
        (1000, 3136, ""),
        (784, 784, ""),
        (200_704, 200_704, ""),  # 16 x 16
        (3136, 7055, ""),
    ],
)
def test_bounds_hold_a_square_of_whole_tokens(least: int, most: int, advice: str) -> None:
    asked = Pixels(min=least, max=most)
    if advice:
        with pytest.raises(UserError, match=re.escape(advice)):
            pixel_bounds("nobody/has-this", asked)
        return
    bounds = pixel_bounds("nobody/has-this", asked)
    for side in (5, 28, 90, 1000):
        width, height = model_size((side, side), *bounds)
        assert least <= width * height <= most


def test_one_bound_and_that_of_the_processor_hold_a_square_too(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3200, "max_pixels": 8000}))
    assert pixel_bounds(tmp_path, Pixels(max=7056)) == (3200, 7056, 28)
    for asked in (Pixels(max=7055), Pixels(min=7057)):
        with pytest.raises(UserError, match="no image of whole tokens lies between"):
            pixel_bounds(tmp_path, asked)


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


def test_the_cache_of_decoded_images_is_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten large photographs, or a thousand small images: the pixels held are what counts."""
    assert images._DECODED.limit == images.DECODED_BYTES and images._SENT.limit == images.SENT_BYTES
    for side, count, kept in ((100, 5, 3), (10, 400, 300), (200, 2, 1)):
        cache: ByteCache[Image.Image] = ByteCache(90_000, images._DECODED._size)
        monkeypatch.setattr(images, "_DECODED", cache)
        paths = [str(tmp_path / f"{side}-{n}.png") for n in range(count)]
        for path in paths:
            Image.new("RGB", (side, side)).save(path)
            images.decoded(path)
        assert len(cache) == kept and cache.bytes == 3 * side * side * kept
        assert images.decoded(paths[-1]) is images.decoded(paths[-1])  # the rollouts of a prompt share it


def test_a_byte_cache_drops_what_was_used_longest_ago_and_stores_no_failure() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    made: list[str] = []

    def get(key: str, size: int = 4) -> bytes:
        return cache.get(key, lambda: made.append(key) or bytes(size))  # type: ignore[func-returns-value]

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"] and len(cache) == 2 and cache.bytes == 8
    with pytest.raises(ZeroDivisionError):
        cache.get("x", lambda: bytes(1 // 0))
    assert len(get("big", 99)) == 99 and len(cache) == 1
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.mark.parametrize("name", ["noise.png", "noise.webp", "noise.jpg"])
def test_the_payload_of_an_image_is_bounded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"quality": 100} if name.endswith("jpg") else {"lossless": True}))
    own = path.stat().st_size
    assert file_url(str(path)) is not None and len(data_url(str(path))) > own
    for limit, kind in ((own, path.suffix[1:].replace("jpg", "jpeg")), (own - 1, "jpeg"), (own // 2, "jpeg")):
        images._SENT.clear()
        monkeypatch.setattr(images, "PAYLOAD_BYTES", limit)
        head, _, body = data_url(str(path)).partition(",")
        sent = base64.b64decode(body)
        assert head == f"data:image/{kind};base64" and len(sent) <= limit
        with Image.open(io.BytesIO(sent)) as shown:
            assert shown.size == (128, 128)
        assert (file_url(str(path)) is None) == (limit < own)
    images._SENT.clear()


def test_photographs_are_told_from_images_without_loss(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "red")
    for name, options, lossy in (
        ("a.jpg", {}, True),
        ("a.webp", {"quality": 80}, True),
        ("b.webp", {"lossless": True}, False),
        ("a.png", {}, False),
        ("a.bmp", {}, False),
    ):
        image.save(tmp_path / name, **options)
        assert images.is_photograph(str(tmp_path / name)) == lossy
