"""Image files, read in one way everywhere: upright (EXIF) and as RGB; their size, and the tokens that they take.

Training, sampling, rewards and evaluation all use this module, so that a box has one frame. Needs no torch.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from fgrpo import boxes
from fgrpo.errors import UserError

IMAGE_ERRORS = (OSError, ValueError, Image.DecompressionBombError)  # what `image_size` and `image_tokens` can raise
SENT_AS_THEY_ARE = ("PNG", "JPEG", "WEBP")  # file formats that every endpoint reads
PORTABLE_BYTES, PORTABLE_SIDE = 64 << 10, 512  # of `portable`
_ORIENTATION = 0x0112  # EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap width and height


def open_rgb(path: str | Path) -> Image.Image:
    """The image at `path`, decoded, rotated by its EXIF orientation, as RGB.

    Raises:
        UserError: the file is missing, or cannot be decoded as an image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"the image {path} is missing; restore the data, or complete its download") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the image {path} cannot be decoded ({error}); download it again or remove its sample"
        ) from error


@lru_cache(maxsize=512)
def decoded(path: str) -> Image.Image:
    """`open_rgb`, cached: the rollouts of one prompt, and passes over the data, share an image. Do not change it in place."""
    return open_rgb(path)


def with_images(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A transform of Hugging Face data sets: paths in the column "images" become images when a row is read."""
    return {**rows, "images": [[decoded(path) for path in paths] for paths in rows["images"]]}


@lru_cache(maxsize=65536)
def image_size(path: str) -> tuple[int, int]:
    """(width, height) of `open_rgb(path)`; reads the file's header only.

    Raises:
        one of `IMAGE_ERRORS`: it cannot be read as an image.
    """
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE else (width, height)


def image_tokens(path: str, bounds: boxes.PixelBounds) -> int:
    """Image tokens of one image, without those around them (`Backbone.prompt_tokens` counts both).

    Args:
        bounds: the processor's (`fgrpo.policy.model_files.pixel_bounds`).

    Raises:
        one of `IMAGE_ERRORS`: as `image_size` and `boxes.smart_resize`.
    """
    width, height = boxes.model_size(image_size(path), *bounds)
    return (width // bounds.factor) * (height // bounds.factor)


def data_url(path: str) -> str:
    """An image as a data URL: the file's own bytes where every reader sees `open_rgb` in them, else a PNG of `open_rgb`.

    Raises:
        UserError: the file is missing, or cannot be decoded as an image.
    """
    return hashed_url(path)[0]


def hashed_url(path: str) -> tuple[str, str]:
    """`data_url` and its sha256.

    Raises:
        UserError: as `data_url`.
    """
    url, digest, _ = _sent(path)
    return url, digest


def file_url(path: str) -> str | None:
    """The file:// URL of an image whose own bytes every reader sees alike (`data_url`), None for others.

    Raises:
        UserError: as `data_url`.
    """
    return Path(path).resolve().as_uri() if _sent(path)[2] else None


def _sent(path: str) -> tuple[str, str, bool]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(
            f"the image {path} cannot be read ({error.strerror}); restore it, or remove its sample"
        ) from error
    return _encoded(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _encoded(path: str, modified: int, size: int) -> tuple[str, str, bool]:
    """(data URL, its sha256, whether it holds the file's own bytes)."""
    image = open_rgb(path)  # also finds broken files before a server does
    with Image.open(path) as original:
        kind, plain = original.format, original.mode == "RGB" and not original.getexif().get(_ORIENTATION)
    is_own = plain and kind in SENT_AS_THEY_ARE
    if is_own:
        data = Path(path).read_bytes()
    else:
        kind, buffer = "PNG", io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    url = f"data:image/{str(kind).lower()};base64,{base64.b64encode(data).decode()}"
    return url, hashlib.sha256(url.encode()).hexdigest(), is_own


def portable(path: str) -> bytes:
    """An image to store with a record: the file's bytes, or a small JPEG if the file is large.

    Files up to `PORTABLE_BYTES` stay unchanged; larger ones become a JPEG of at most `PORTABLE_SIDE` pixels per side.

    Raises:
        UserError: the file is missing, or cannot be decoded as an image.
    """
    stat = os.stat(path)
    return _portable(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _portable(path: str, modified: int, size: int) -> bytes:
    if size <= PORTABLE_BYTES:
        return Path(path).read_bytes()
    image = open_rgb(path)
    image.thumbnail((PORTABLE_SIDE, PORTABLE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
