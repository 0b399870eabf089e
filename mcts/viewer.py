"""An HTML page with sample trees: images with the teacher's boxes, visits, values, priors, and the accepted chains.

The page is self-contained: images are embedded, there are no scripts and no external resources. All text comes from a model or
a data file, so the template escapes everything. The stage writes it to runs/<preset>/mcts/viewer.html.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from fgrpo.boxes import PixelBounds, convert, model_size
from fgrpo.errors import UserError
from fgrpo.images import open_rgb
from fgrpo.response import parse_boxes
from fgrpo.types import Box, Trace
from mcts.tree import Tree

TEMPLATES = Path(__file__).resolve().parent / "templates"
TREES_PER_SOURCE = 4
MAX_SIDE = 448  # pixels of the longer side of an embedded image
COLORS = ("#0b63b0", "#a85b00", "#15703a", "#8a2be2", "#b3261e", "#008080")


@dataclass(frozen=True)
class TreeView:
    """One tree of the page, with its traces and embedded images."""

    tree: Tree
    traces: Sequence[Trace]
    images: Sequence[dict[str, Any]]


class Gallery:
    """Collects the trees of the page: the first few trees of each source that have chains."""

    def __init__(self, pixels: PixelBounds, per_source: int = TREES_PER_SOURCE) -> None:
        """`pixels`: the bounds of the teacher's processor."""
        self._pixels, self._per_source = pixels, per_source
        self._counts: Counter[str] = Counter()
        self._views: list[TreeView] = []

    def offer(self, tree: Tree, traces: Sequence[Trace]) -> None:
        """Add the tree unless it has no traces or its source is full."""
        source = tree.sample.source
        if not traces or self._counts[source] >= self._per_source:
            return
        self._counts[source] += 1
        boxes = boxes_of(tree) if len(tree.sample.images) == 1 else []
        images = [_embedded_image(path, boxes, self._pixels) for path in tree.sample.images]
        self._views.append(TreeView(tree, traces, images))

    def page(self, title: str) -> str:
        """The page as HTML."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        return environment.get_template("viewer.html.j2").render(title=title, views=self._views)


def boxes_of(tree: Tree) -> list[Box]:
    """Distinct boxes of the tree's steps (not of its rollouts), in order, in the policy's frame."""
    distinct: dict[Box, None] = {}
    for node in tree.root.walk():
        for box in parse_boxes(node.step, box_tag=tree.policy.box_tag, frame=tree.policy.box_frame)[0]:
            distinct.setdefault(box)
    return list(distinct)


def _embedded_image(path: str, boxes: Iterable[Box], pixels: PixelBounds) -> dict[str, Any]:
    """An image as a data URI, with its boxes in pixels of the image as the model sees it."""
    try:
        image = open_rgb(path)
    except UserError as error:  # the file was removed after the search; the page shows the tree and the error
        return {"uri": "", "problem": str(error), "width": 1, "height": 1, "boxes": []}
    width, height = seen = model_size(image.size, *pixels)
    converted = [convert(box, "model", image.size, seen) for box in boxes]
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, format="PNG")
    rectangles = [
        {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "color": COLORS[i % len(COLORS)]}
        for i, (x1, y1, x2, y2) in enumerate(converted)
    ]
    uri = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"uri": uri, "problem": "", "width": width, "height": height, "boxes": rectangles}
