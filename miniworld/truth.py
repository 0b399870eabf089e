"""Maps an image to its scene, for samples that were read from a data set's own format, which contains no scene.

Whoever writes images of the miniature world also writes `scenes.jsonl` next to them: one line per image,
`{"key": image_key(image), "scene": scene.to_dict()}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from fgrpo import recorded
from fgrpo.errors import UserError
from fgrpo.hashing import Hashes
from miniworld.scene import Scene

FILE = "scenes.jsonl"


def image_key(image: str | Path | Image.Image) -> str:
    """SHA-256 (hex) over size and RGB pixels of an image or image file.

    Raises:
        OSError: the file cannot be read.
    """
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return image_key(opened.convert("RGB"))
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def entry(image: Image.Image, scene: Scene) -> dict[str, object]:
    """The line of scenes.jsonl for `image` as it will be decoded (lossless formats only)."""
    return {"key": image_key(image), "scene": scene.to_dict()}


class TruthBook:
    """Scenes by image."""

    def __init__(self, scenes: Iterable[tuple[str, Scene]]) -> None:
        self._scenes = dict(scenes)
        self._keys: dict[str, str] = {}  # path -> key, so that each image is decoded once

    def __len__(self) -> int:
        return len(self._scenes)

    @classmethod
    def load(cls, folder: str | Path) -> TruthBook:
        """Read `folder`/scenes.jsonl.

        Raises:
            UserError: the file is missing, or a line is not a valid entry (names the line).
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(
                f"no {FILE} in {folder}, the root of the miniature data. Run `make data PRESET=mini` to write it"
            )
        recorded.check(
            Path(folder) / recorded.LIST, Path(folder), Hashes(), {FILE}.__contains__, "`make data` writes it again"
        )
        entries = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    entries.append((str(row["key"]), Scene.from_dict(row["scene"])))
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}, line {number} is not a valid scene ({error!r}). Delete the folder, then rerun `make data`"
                    ) from error
        return cls(entries)

    def scenes(self, image_paths: Sequence[str | Path | Image.Image]) -> tuple[Scene, ...] | None:
        """The scenes of the images, in order; None if the book does not contain one of them.

        Raises:
            OSError: an image file cannot be read.
        """
        scenes = []
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
            scenes.append(self._scenes[key])
        return tuple(scenes)
