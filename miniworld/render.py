"""Draws a scene as a 112 x 112 image.

Thin ruler ticks on the upper and left edge of every 14-px patch encode its row and column. A vision transformer with rotary
positions only hardly learns absolute positions in such a short training (without ticks localisation stays at chance).
"""

from __future__ import annotations

import random
from functools import lru_cache

from PIL import Image, ImageDraw

from miniworld.scene import COLORS, PIXELS, Scene, Thing

PATCH = 14  # px, patch of Qwen2.5-VL
BACKGROUND = 235  # grey value without jitter
BACKGROUND_RANGE = (215, 250)
COLOR_JITTER = 18  # maximum change per colour channel


@lru_cache(maxsize=1)
def _ticks() -> tuple[Image.Image, Image.Image]:
    """The ruler ticks and their mask.

    Patch (row, column) has a dark tick of `column` px offset on its upper edge and of `row` px offset on its left edge, both on
    a white line.
    """
    image = Image.new("RGB", (PIXELS, PIXELS), (255, 255, 255))
    mask = Image.new("L", (PIXELS, PIXELS), 0)
    draw, draw_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for column in range(PIXELS // PATCH):
        for row in range(PIXELS // PATCH):
            x, y = PATCH * column, PATCH * row
            for line, grey in (
                ((x, y, x + PATCH - 1, y), 255),
                ((x, y, x, y + PATCH - 1), 255),
                ((x + 1 + column, y, x + 2 + column, y), 0),
                ((x, y + 1 + row, x, y + 2 + row), 0),
            ):
                draw.line(line, fill=(grey, grey, grey))
                draw_mask.line(line, fill=255)
    return image, mask


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, color: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = thing.box
    corners = (x1, y1, x2 - 1, y2 - 1)
    if thing.shape == "circle":
        draw.ellipse(corners, fill=color)
    elif thing.shape == "square":
        draw.rectangle(corners, fill=color)
    else:
        draw.polygon([((x1 + x2) / 2, y1), (x2 - 1, y2 - 1), (x1, y2 - 1)], fill=color)


def render(scene: Scene, rng: random.Random | None = None) -> Image.Image:
    """An RGB image of `scene`, 112 x 112 px. `rng` jitters background and colours; without it they are fixed."""
    grey = BACKGROUND if rng is None else rng.randint(*BACKGROUND_RANGE)
    image = Image.new("RGB", (PIXELS, PIXELS), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        color: tuple[int, ...] = COLORS[thing.color]
        if rng is not None:
            color = tuple(max(0, min(255, v + rng.randint(-COLOR_JITTER, COLOR_JITTER))) for v in color)
        _draw_thing(draw, thing, color)
    ticks, mask = _ticks()
    image.paste(ticks, (0, 0), mask)
    return image
