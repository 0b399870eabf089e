"""Images of the data: decoded in one way everywhere (`fgrpo.image_files`), their size, and the tokens that they take.

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

from PIL import Image, JpegImagePlugin

from fgrpo import boxes, image_files
from fgrpo.byte_cache import ByteCache
from fgrpo.errors import UserError

IMAGE_ERRORS = (OSError, ValueError)  # what `image_size` and `image_tokens` can raise
SENT_AS_THEY_ARE = ("PNG", "JPEG", "WEBP")  # file formats that every endpoint reads
JPEG_KINDS = ("JPEG", "MPO")
SAMPLING_420 = 2  # Pillow's number of the one chroma subsampling that a turn keeps
WEBP_HEAD = 1 << 20  # bytes in which a WebP file says whether it is lossy; color profiles come before
PAYLOAD_BYTES = 16 << 20  # of an image in a request, before base64 adds a third; a larger one is sent as JPEG
DECODED_BYTES, SENT_BYTES = 1 << 30, 256 << 20  # of the caches of a process
_QUALITIES = (95, 85, 75, 50)
PORTABLE_BYTES, PORTABLE_SIDE = 64 << 10, 512  # of `portable`


def open_rgb(path: str | Path) -> Image.Image:
    """The image at `path`, decoded, upright (EXIF), as RGB, with transparency laid on white (`image_files.decode`).

    Raises:
        UserError: the file is missing, cannot be decoded as an image, or has more than `image_files.MAX_PIXELS`.
    """
    return _decode(path)[0]


def open_for_model(path: str | Path) -> Image.Image:
    """`open_rgb` of an image that a model is to see.

    Raises:
        UserError: as `open_rgb`, or the aspect ratio is one that the processors refuse.
    """
    image, header = _decode(path)
    if header.is_narrow:
        raise UserError(
            f"the image {path} of {header.width} x {header.height} pixels is too narrow for the processor (at most "
            f"{boxes.ASPECT_LIMIT} to 1); crop it, or remove its sample"
        )
    return image


def _decode(path: str | Path) -> tuple[Image.Image, image_files.Header]:
    try:
        return image_files.decode(path)
    except FileNotFoundError as error:
        raise UserError(f"the image {path} is missing; restore the data, or complete its download") from error
    except image_files.ImageProblem as error:
        advice = "," if error.reason == "too_many_pixels" else "; download it again"  # "save it smaller, or …"
        raise UserError(f"the image {path} {error}{advice} or remove its sample") from error


_DECODED: ByteCache[Image.Image] = ByteCache(DECODED_BYTES, lambda image: 3 * image.width * image.height)


def decoded(path: str) -> Image.Image:
    """`open_rgb`, cached: the rollouts of one prompt, and passes over the data, share an image. Do not change it in place.

    The cache holds at most `DECODED_BYTES` of pixels in each process.
    """
    return _DECODED.get(path, lambda: open_rgb(path))


def with_images(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A transform of Hugging Face data sets: paths in the column "images" become images when a row is read."""
    return {**rows, "images": [[decoded(path) for path in paths] for paths in rows["images"]]}


@lru_cache(maxsize=65536)
def image_size(path: str) -> tuple[int, int]:
    """(width, height) of `open_rgb(path)`; reads the file's header only.

    Raises:
        one of `IMAGE_ERRORS`: it cannot be read as an image, or has too many pixels.
    """
    return image_files.read_header(path)[:2]


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
    """An image as a data URL: the file's own bytes where every reader sees `open_rgb` in them, else `open_rgb` encoded anew.

    A JPEG stays a JPEG, so that it does not grow (`_jpeg_options`); formats without loss become a PNG. What is larger than
    `PAYLOAD_BYTES` becomes a JPEG.

    Raises:
        UserError: as `open_for_model`.
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
    stat = _stat(path)
    return _SENT.get((path, stat.st_mtime_ns, stat.st_size), lambda: _encoded(path))


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the image {path} cannot be read ({reason}); restore it, or remove its sample") from error


_SENT: ByteCache[tuple[str, str, bool]] = ByteCache(SENT_BYTES, lambda sent: len(sent[0]))


def _encoded(path: str) -> tuple[str, str, bool]:
    """(data URL, its sha256, whether it holds the file's own bytes)."""
    image = open_for_model(path)  # also finds broken files before a server does
    with Image.open(path) as original:
        header = image_files.header_of(original)
        is_own = (
            header.kind in SENT_AS_THEY_ARE
            and header.orientation == 1
            and (original.mode == "RGB" or (original.mode == "L" and header.kind == "JPEG"))
            and not original.has_transparency_data
            and not getattr(original, "is_animated", False)
        )
        lossy = _jpeg_options(path, original, header)
    if is_own:
        kind, data = header.kind, Path(path).read_bytes()
    else:
        kind, buffer = "PNG" if lossy is None else "JPEG", io.BytesIO()
        image.save(buffer, kind, **(lossy or {}))
        data = buffer.getvalue()
    if len(data) > PAYLOAD_BYTES:
        kind, data, is_own = "JPEG", _within(image, PAYLOAD_BYTES), False
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    return url, hashlib.sha256(url.encode()).hexdigest(), is_own


def _within(image: Image.Image, limit: int) -> bytes:
    """`image` as a JPEG of at most `limit` bytes, at the first of `_QUALITIES` that suffices (the last one in any case)."""
    data = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
        data = buffer.getvalue()
        if len(data) <= limit:
            break
    return data


def is_photograph(path: str) -> bool:
    """Whether an image file has lost something to its format already (JPEG, lossy WebP), so that a JPEG of it loses little more.

    Raises:
        OSError: the file cannot be opened.
    """
    with Image.open(path) as original:
        return _jpeg_options(path, original, image_files.header_of(original)) is not None


def _jpeg_options(path: str, original: Image.Image, header: image_files.Header) -> dict[str, Any] | None:
    """How to encode the upright image as JPEG, with little loss and about the file's size; None for files without loss.

    A JPEG keeps its quantization, transposed with the image. One in other colors (CMYK) gets quality 95, a lossy WebP 90.
    """
    if header.kind == "WEBP":
        with Path(path).open("rb") as file:
            return {"quality": 90} if b"VP8 " in file.read(WEBP_HEAD) else None
    if header.kind not in JPEG_KINDS:
        return None
    tables: dict[int, Sequence[int]] = getattr(original, "quantization", {})
    if original.mode not in ("RGB", "L") or not tables:
        return {"quality": 95, "subsampling": 0}
    if header.is_on_its_side:
        tables = {key: [t[8 * (i % 8) + i // 8] for i in range(64)] for key, t in tables.items()}
    subsampling = JpegImagePlugin.get_sampling(original)
    return {"qtables": dict(tables), "subsampling": subsampling if subsampling == SAMPLING_420 else 0}


def portable(path: str) -> bytes:
    """An image to store with a record: the file's bytes, or a small JPEG if the file is large.

    Files up to `PORTABLE_BYTES` stay unchanged; larger ones become a JPEG of at most `PORTABLE_SIDE` pixels per side.

    Raises:
        UserError: the file is missing or broken, or its path holds a NUL.
    """
    stat = _stat(path)
    return _portable(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _portable(path: str, modified: int, size: int) -> bytes:
    image = open_rgb(path)  # also finds a small file that is broken
    if size <= PORTABLE_BYTES:
        return Path(path).read_bytes()
    image.thumbnail((PORTABLE_SIDE, PORTABLE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
