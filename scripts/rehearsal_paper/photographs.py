"""Real photographs of packages, with things that they show, as files of the sizes and kinds that real data sets have.

`FORMS` lists the kinds. A photograph in a form is deterministic. Boxes are in upright pixels of the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from miniworld.scene import BoxPx, Scene, Thing

Slot = Literal["png", "jpeg"]  # what the schema's file is called; its bytes may be another kind

_BOXES: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {  # tenths of width and height, by eye
    "skimage/data/astronaut.png": {
        "smiling face": (3.1, 0.3, 5.6, 3.5), "white shuttle": (7, 0.1, 8.6, 5.3), "black helmet": (5.8, 6.7, 10, 10)
    },
    "skimage/data/coffee.png": {
        "white cup": (3.1, 0.4, 7, 5.6), "silver spoon": (5.3, 5.9, 6.7, 8.3), "red saucer": (1.3, 2, 8, 9.6)
    },
    "skimage/data/chelsea.png": {
        "pink nose": (5.3, 7.4, 6.3, 8.9), "amber eye": (3.0, 2.8, 4.6, 4.8), "pale eye": (6.7, 3.6, 7.8, 5.5)
    },
    "skimage/data/motorcycle_left.png": {
        "front wheel": (6.8, 5.3, 9.4, 9.2), "rear wheel": (1.6, 5.2, 3.9, 8), "red tank": (3, 3.9, 6.3, 5.6)
    },
    "skimage/data/rocket.jpg": {
        "tall rocket": (4.8, 3.2, 5.4, 9.5), "dark mast": (0, 0, 1.4, 8.2), "bright lamp": (1.9, 8.6, 2.9, 9.7)
    },
    "sklearn/datasets/images/china.jpg": {
        "tall pagoda": (1, 0.7, 5.4, 8.7), "dark tree": (8.5, 3.2, 10, 7.5), "leafy bush": (5.5, 6.9, 9.9, 10)
    },
    "sklearn/datasets/images/flower.jpg": {
        "orange dahlia": (2.7, 2, 7, 8.4), "low bud": (4.5, 8.9, 7, 10), "dark leaf": (0.2, 6, 2.4, 9.9)
    },
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": {
        "white cap": (3.3, 0.4, 7.4, 2.6), "striped flag": (0, 0.1, 4, 7.5), "medal bar": (6.5, 8, 8.9, 9)
    },
    "ultralytics/assets/bus.jpg": {
        "blue bus": (0.2, 2.2, 9.9, 6.8), "white coat": (0.6, 3.6, 2.6, 7.9), "dark man": (2.6, 3.7, 4.2, 7.6)
    },
    "ultralytics/assets/zidane.jpg": {
        "bald man": (0.4, 2.8, 7, 10), "grey man": (5, 0.6, 10, 10), "red tie": (3.2, 6.2, 4.1, 10)
    },
}  # fmt: skip
NAMES = tuple(_BOXES)


@dataclass(frozen=True)
class PhotoScene(Scene):
    """What a file of a photograph shows."""

    photo: str = ""
    form: str = ""
    mirrored: bool = False

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of the upright image in px."""
        return FORMS[self.form].extent


@dataclass(frozen=True)
class Form:
    """A size and a kind of file; `encode` gets the resized RGB image. `slot`: where a schema may hold it."""

    extent: tuple[int, int]
    slot: Slot
    encode: Callable[[Image.Image], bytes]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _png(image: Image.Image) -> bytes:
    return _saved(image, "PNG", compress_level=1)


def _jpeg(image: Image.Image) -> bytes:
    return _saved(image, "JPEG", quality=88)


def _sixteen_bit(image: Image.Image) -> bytes:
    return _saved(image.convert("L").convert("I").point(lambda level: level * 257).convert("I;16"), "PNG")


def _transparent(image: Image.Image) -> bytes:
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, image.width // 8, image.height // 8))
    image = image.copy()
    image.putalpha(mask)
    return _png(image)


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: stored a quarter turn to the left
    return _saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=88, exif=exif)


FORMS: Mapping[str, Form] = {
    "vga png": Form((640, 480), "png", _png),
    "vga jpeg": Form((640, 480), "jpeg", _jpeg),
    "upright png": Form((480, 640), "png", _png),
    "coco jpeg": Form((640, 427), "jpeg", _jpeg),
    "small jpeg": Form((336, 252), "jpeg", _jpeg),
    "palette png": Form((500, 375), "png", lambda image: _png(image.quantize(256))),
    "1080p jpeg in a png's place": Form((1920, 1080), "png", _jpeg),
    "transparent png": Form((512, 384), "png", _transparent),
    "16-bit png": Form((448, 336), "png", _sixteen_bit),
    "webp named jpg": Form((640, 480), "jpeg", lambda image: _saved(image, "WEBP", quality=85)),
    "cmyk jpeg": Form((600, 450), "jpeg", lambda image: _jpeg(image.convert("CMYK"))),
    "grey jpeg": Form((500, 333), "jpeg", lambda image: _jpeg(image.convert("L"))),
    "turned jpeg": Form((600, 400), "jpeg", _turned),
    "one pixel png": Form((1, 1), "png", _png),
    "one pixel jpeg": Form((1, 1), "jpeg", _jpeg),
    "100 to 1 png": Form((2800, 28), "png", _png),
    "300 to 1 jpeg": Form((3000, 10), "jpeg", _jpeg),
    "camera jpeg": Form((4000, 3000), "jpeg", _jpeg),
    "camera jpeg in a png's place": Form((4000, 3000), "png", _jpeg),
}
ORDINARY: Mapping[Slot, tuple[str, ...]] = {
    "png": ("vga png", "upright png"),
    "jpeg": ("vga jpeg", "coco jpeg", "small jpeg"),
}
ODD: Mapping[Slot, tuple[str, ...]] = {
    slot: tuple(name for name, form in FORMS.items() if form.slot == slot and name not in names)
    for slot, names in ORDINARY.items()
}


def form_of(n: int, slot: Slot) -> str:
    """The form of the `n`-th file of a data set: two ordinary ones, then an odd one."""
    usual, odd = ORDINARY[slot], ODD[slot]
    return odd[n // 3 % len(odd)] if n % 3 == 2 else usual[(n - n // 3) % len(usual)]


def scene_of(photo: str, form: str, mirrored: bool = False) -> PhotoScene:
    """The things of a photograph in a form; each box has at least one pixel."""
    width, height = FORMS[form].extent
    things = []
    for name, (x1, y1, x2, y2) in _BOXES[photo].items():
        left, right = (10 - x2, 10 - x1) if mirrored else (x1, x2)
        color, _, shape = name.partition(" ")
        things.append(Thing(color, shape, _pixels((left, y1, right, y2), width, height)))
    return PhotoScene(tuple(things), photo, form, mirrored)


def _pixels(tenths: tuple[float, float, float, float], width: int, height: int) -> BoxPx:
    x1, y1 = (min(int(v * side / 10), side - 1) for v, side in zip(tenths[:2], (width, height), strict=True))
    x2, y2 = (round(v * side / 10) for v, side in zip(tenths[2:], (width, height), strict=True))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


class Album:
    """The photographs of a folder, as file bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = lru_cache(maxsize=None)(self._file)

    def _file(self, photo: str, form: str, mirrored: bool) -> bytes:
        kind = FORMS[form]
        with Image.open(self.folder / photo) as opened:
            image = opened.convert("RGB").resize(kind.extent, Image.Resampling.BILINEAR)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return kind.encode(image)
