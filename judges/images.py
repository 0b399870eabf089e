"""Pictures for a judge model: checked, hashed, and as data URLs. Raises OSError for a picture that is missing or broken."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

_MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@lru_cache(maxsize=256)
def data_url(path: str) -> tuple[str, str]:
    """(base64 data URL, sha256) of a picture file; formats that endpoints may not know are sent as PNG."""
    raw = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            picture.load()
            kind = picture.format or ""
            if kind not in _MEDIA:
                out = io.BytesIO()
                picture.convert("RGB").save(out, "PNG")
                raw, kind = out.getvalue(), "PNG"
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} is no readable picture: {error}") from error
    return f"data:{_MEDIA[kind]};base64,{base64.b64encode(raw).decode()}", hashlib.sha256(raw).hexdigest()
