"""Opening picture files the same way everywhere: upright (EXIF), three channels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from fgrpo.errors import UserError


def open_rgb(path: str | Path) -> Image.Image:
    """The picture at `path`, decoded, turned as its EXIF orientation says, as RGB.

    Raises:
        UserError: no such file, or not a picture that can be decoded.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"the picture {path} is missing; has the data been moved or only half downloaded?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the picture {path} cannot be decoded ({error}); download it again or take its sample out"
        ) from error
