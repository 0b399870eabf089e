"""One reader of image files: bounded before decoding, upright (EXIF), 8 bits per channel, transparency laid on white.

Every module that opens an image of the data uses this reader, so that a box has one frame and every engine sees the same pixels.
Files are untrusted: a problem is an `ImageProblem` with a short reason for counts. Needs no torch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from fgrpo.boxes import ASPECT_LIMIT

MAX_PIXELS = 2**26  # of an image file (67 megapixels); decoding and resizing take about 40 bytes per pixel
ORIENTATION = 0x0112  # EXIF
DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # what Pillow raises for a damaged file
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap width and height
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TAIL_BYTES = 4096  # the end marker of a complete image lies within these last bytes, because some cameras append data
_END_MARKERS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}  # the data of a scan never contains them


class ImageProblem(ValueError):
    """An image that cannot be used; `reason` is the short form under which it is counted.

    The message continues "the image <path> …".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Header(NamedTuple):
    """What an image file says before its pixels are decoded; width and height are those of the upright image."""

    width: int
    height: int
    kind: str  # Pillow's name of the file format
    orientation: int  # EXIF; 1 is upright

    @property
    def is_on_its_side(self) -> bool:
        """Whether making it upright swaps width and height."""
        return self.orientation in _ON_ITS_SIDE

    @property
    def is_narrow(self) -> bool:
        """Whether the processors refuse its aspect ratio (`boxes.smart_resize`)."""
        return max(self.width, self.height) > ASPECT_LIMIT * min(self.width, self.height)


def read_header(source: str | Path | IO[bytes]) -> Header:
    """The header of an image file, or of an open file; decodes no pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ImageProblem: "corrupt_image", "empty_image" (no pixels) or "too_many_pixels".
    """
    with _as_problems("cannot be read as an image"), Image.open(source) as image:
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    """`read_header` of an image that Pillow has opened and not yet decoded."""
    width, height = image.size
    if min(width, height) < 1:
        raise ImageProblem("empty_image", f"has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise _too_many(f"has {width} x {height} pixels")
    orientation = _orientation(image)
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    return Header(width, height, str(image.format), orientation)


@contextmanager
def _as_problems(failure: str) -> Iterator[None]:
    """What Pillow raises for a file as an `ImageProblem`; a missing file stays one. `failure`: how the message names a damaged one."""
    try:
        yield
    except (FileNotFoundError, ImageProblem):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many(f"has too many pixels ({error})") from error
    except DECODING_ERRORS as error:
        raise ImageProblem("corrupt_image", f"{failure} ({error})") from error


def _too_many(problem: str) -> ImageProblem:
    return ImageProblem("too_many_pixels", f"{problem}, and at most {MAX_PIXELS} are decoded; save it smaller")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read. `getexif` decodes a PNG without EXIF, so look first."""
    if image.format == "PNG" and not any(key in image.info for key in _EXIF_KEYS):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODING_ERRORS:  # damaged metadata says nothing about the pixels
        return 1
    return value if value in _TRANSPOSE else 1


def decode(source: str | Path | IO[bytes]) -> tuple[Image.Image, Header]:
    """The upright RGB image of a file, and its header.

    Raises:
        FileNotFoundError: there is no such file.
        ImageProblem: as `read_header`; a truncated or damaged file is a "corrupt_image", 32-bit gray values are an
            "unknown_range".
    """
    with _as_problems("cannot be decoded"), Image.open(source) as image:
        header = header_of(image)
        rgb = as_rgb(image)
    turn = _TRANSPOSE.get(header.orientation)
    return (rgb if turn is None else rgb.transpose(turn)), header


def as_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB: transparent pixels on white, 16-bit gray scaled to 8 bits (Pillow's own conversion clips it).

    Raises:
        ImageProblem: "unknown_range": gray values of 32 bits, whose white point no file states.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        on_white = Image.new("RGBA", rgba.size, "white")
        on_white.alpha_composite(rgba)
        return on_white.convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image.copy() if image.readonly else image
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray values of 0 to 65535 as 0 to 255; a transparent gray value becomes white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageProblem("unknown_range", "holds 32-bit gray values; save it with 8 or 16 bits per channel")
    values = values.astype(np.uint32)
    gray = ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def check_complete(head: bytes, tail: bytes, size: int, kind: str) -> None:
    """Refuse a file that was cut off, by its first and last bytes; decodes nothing.

    Args:
        head, tail: at least the first 12 bytes, and the last `_TAIL_BYTES`.
        size: bytes of the file.
        kind: Pillow's name of the format.

    Raises:
        ImageProblem: "corrupt_image".
    """
    is_cut = _END_MARKERS.get(kind, b"") not in tail
    if kind == "WEBP":
        is_cut = int.from_bytes(head[4:8], "little") + 8 > size
    if is_cut:
        raise ImageProblem("corrupt_image", "lacks its end")


def read_complete_header(file: IO[bytes]) -> Header:
    """`read_header` of an open file that is not cut off.

    Raises:
        ImageProblem: as `read_header` and `check_complete`.
    """
    header = read_header(file)
    file.seek(0)
    head = file.read(12)
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL_BYTES))
    check_complete(head, file.read(), size, header.kind)
    return header


def path_below(folder: Path, name: Any) -> Path:
    """The path below `folder` that a data set's row calls `name`; whether it exists is not checked.

    Links inside the folder are allowed: they are the user's own.

    Raises:
        ImageProblem: "no_image" (the name is empty, or no text), or "image_path_leads_out" (an absolute path, or one with ".." or a NUL).
    """
    if not isinstance(name, str) or not name.strip():
        raise ImageProblem("no_image", f"has the name {name!r}, which is no text")
    parts = PurePosixPath(name)
    if "\0" in name:
        raise ImageProblem("image_path_leads_out", f"has the path {name!r}, which holds a NUL")
    if parts.is_absolute() or ".." in parts.parts:
        raise ImageProblem("image_path_leads_out", f"has the path {name!r}, which leads out of {folder}")
    return folder / parts


def existing_below(folder: Path, name: Any) -> Path:
    """`path_below` of a file that exists.

    Raises:
        ImageProblem: as `path_below`, or "missing_image".
    """
    path = path_below(folder, name)
    try:
        exists = path.is_file()
    except OSError:  # the name exceeds the file system's limit
        exists = False
    if not exists:
        raise ImageProblem("missing_image", "is missing")
    return path
