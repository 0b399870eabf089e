"""Finds the scene that a picture shows, for samples that came through the data sets' own formats, which carry no scene.

Whoever writes pictures of the miniature world also writes `scenes.jsonl` beside them: one line a picture,
`{"key": image_key(picture), "scene": scene.to_dict()}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from fgrpo.errors import UserError
from miniworld.scene import Scene

FILE = "scenes.jsonl"


def image_key(image: str | Path | Image.Image) -> str:
    """sha256 (hex) of size and RGB pixels of a picture, or of the picture in a file. OSError if it cannot be read."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return image_key(opened.convert("RGB"))
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def entry(image: Image.Image, scene: Scene) -> dict[str, object]:
    """The line of scenes.jsonl for `image` as it will be decoded again (lossless formats only)."""
    return {"key": image_key(image), "scene": scene.to_dict()}


class TruthBook:
    """Scenes by picture."""

    def __init__(self, scenes: Iterable[tuple[str, Scene]]) -> None:
        self._scenes = dict(scenes)
        self._keys: dict[str, str] = {}  # path -> key, so that a picture is decoded once

    def __len__(self) -> int:
        return len(self._scenes)

    @classmethod
    def load(cls, folder: str | Path) -> TruthBook:
        """Reads `folder`/scenes.jsonl. UserError if it is missing or a line is not an entry."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"no {FILE} in {folder}, the root of miniature data; `make data PRESET=mini` writes it")
        pairs = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    pairs.append((str(row["key"]), Scene.from_dict(row["scene"])))
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}, line {number} is not a scene ({error!r}); delete the folder and make it again"
                    ) from error
        return cls(pairs)

    def scenes(self, image_paths: Sequence[str | Path | Image.Image]) -> tuple[Scene, ...] | None:
        """The scenes of the pictures, in order; None if one of them is not in the book. OSError if one cannot be read."""
        found = []
        for image in image_paths:
            if isinstance(image, Image.Image):
                key = image_key(image)
            else:
                name = str(image)
                if name not in self._keys:
                    self._keys[name] = image_key(name)
                key = self._keys[name]
            if key not in self._scenes:
                return None
            found.append(self._scenes[key])
        return tuple(found)
