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
_TURNED_BY_PILLOW = "TIFF"  # Pillow turns it as it decodes; as it opens, `size` follows the tag, not XMP
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TAIL_BYTES = 4096  # the end marker of most images lies within these last bytes; some cameras append more data
_END_MARKERS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}  # the data of a scan never contains them
_START_OF_SCAN, _WITHOUT_LENGTH = 0xDA, (0x01, *range(0xD0, 0xD9))  # JPEG markers
_PHOTOMETRIC, _BITS_PER_SAMPLE = 262, 258  # TIFF tags
_WHITE_IS_ZERO = 0


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
    is_swapped = image.format == _TURNED_BY_PILLOW and _tiff_tag(image, ORIENTATION) in _ON_ITS_SIDE
    if orientation in _ON_ITS_SIDE and not is_swapped:
        width, height = height, width
    return Header(width, height, str(image.format), orientation)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF file; None if it is not there, and for other formats."""
    return getattr(image, "tag_v2", {}).get(tag)


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
    turn = None if header.kind == _TURNED_BY_PILLOW else _TRANSPOSE.get(header.orientation)
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
    """Gray values of 12 or 16 bits as 0 to 255, black is 0; a transparent gray value becomes white."""
    values = np.asarray(image)
    is_wide = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")  # a PGM has mode I, scaled to 16 bits
    if is_wide or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageProblem("unknown_range", "holds 32-bit gray values; save it with 8 or 16 bits per channel")
    white = 0xFFF if _tiff_tag(image, _BITS_PER_SAMPLE) == (12,) else 0xFFFF
    values = values.astype(np.uint32)
    gray = ((values * 255 + white // 2) // white).astype(np.uint8)
    if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts gray values of 1 to 8 bits alone
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def read_complete_header(file: IO[bytes]) -> Header:
    """`read_header` of an open file that is not cut off; a format without a mark of its end is decoded.

    Raises:
        ImageProblem: as `read_header` and `decode`.
    """
    header = read_header(file)
    if header.kind != "WEBP" and header.kind not in _END_MARKERS:
        decode(file)
    elif not _has_its_end(file, header.kind):
        raise ImageProblem("corrupt_image", "lacks its end")
    return header


def _has_its_end(file: IO[bytes], kind: str) -> bool:
    """Whether a PNG, JPEG, MPO or WebP file ends as a complete one does."""
    size = file.seek(0, 2)
    if kind == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    start = 0 if kind == "PNG" else _scan_start(file, size)
    for place in (max(start, size - _TAIL_BYTES), start):
        file.seek(place)
        if _END_MARKERS[kind] in file.read():
            return True
    return False


def _scan_start(file: IO[bytes], size: int) -> int:
    """Where the first scan of a JPEG begins, `size` if none does. Thumbnails, which end as images do, lie before it."""
    at = 2
    while at < size:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            break
        if head[1] == _START_OF_SCAN:
            return at
        if head[1] == 0xFF:  # padding
            at += 1
        elif head[1] in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(head[2:], "big")
    return size


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
