"""A page that shows some trees: pictures with the boxes the teacher named, visits, values, priors, and the chains taken.

Self-contained: pictures are embedded, no script, nothing is loaded from anywhere. All text is a model's or a data file's, so
the template escapes everything. Written by the stage as runs/<preset>/mcts/viewer.html.
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

from fgrpo.boxes import convert, model_size
from fgrpo.errors import UserError
from fgrpo.images import open_rgb
from fgrpo.policy import backbone
from fgrpo.response import parse_boxes
from fgrpo.types import Box, Trace
from mcts.tree import Tree

TEMPLATES = Path(__file__).resolve().parent / "templates"
EACH = 4  # trees of one source
SIDE = 448  # pixels of the longer side of an embedded picture, at most
COLOURS = ("#0b63b0", "#a85b00", "#15703a", "#8a2be2", "#b3261e", "#008080")


@dataclass(frozen=True)
class Shown:
    """One tree on the page."""

    tree: Tree
    traces: Sequence[Trace]
    pictures: Sequence[dict[str, Any]]


class Gallery:
    """Collects the trees to show while they pass by: the first few of each source that gave chains."""

    def __init__(self, each: int = EACH) -> None:
        self._each = each
        self._taken: Counter[str] = Counter()
        self._shown: list[Shown] = []

    def offer(self, tree: Tree, traces: Sequence[Trace]) -> None:
        """Take the tree if its source still has room."""
        source = tree.sample.source
        if not traces or self._taken[source] >= self._each:
            return
        self._taken[source] += 1
        boxes = boxes_of(tree) if len(tree.sample.images) == 1 else []
        self._shown.append(Shown(tree, traces, [_picture(path, boxes) for path in tree.sample.images]))

    def page(self, title: str) -> str:
        """The page as HTML."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        return environment.get_template("viewer.html.j2").render(title=title, shown=self._shown)


def boxes_of(tree: Tree) -> list[Box]:
    """Different boxes named in the tree's steps (not in its rollouts), in order."""
    boxes: dict[Box, None] = {}
    for node in tree.root.walk():
        for box in parse_boxes(node.step, box_tag=tree.policy.box_tag, frame=tree.policy.box_frame)[0]:
            boxes.setdefault(box)
    return list(boxes)


def _picture(path: str, boxes: Iterable[Box]) -> dict[str, Any]:
    """A picture as a data URI with its boxes in the coordinates of the picture as the model sees it."""
    try:
        picture = open_rgb(path)
    except UserError as error:  # it has gone since; the tree is still worth a look, and the page says so
        return {"uri": "", "problem": str(error), "width": 1, "height": 1, "boxes": []}
    width, height = seen = model_size(picture.size, *backbone.default().pixels)
    shown = [convert(box, "model", picture.size, seen) for box in boxes]
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    drawn = [
        {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "colour": COLOURS[i % len(COLOURS)]}
        for i, (x1, y1, x2, y2) in enumerate(shown)
    ]
    uri = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"uri": uri, "problem": "", "width": width, "height": height, "boxes": drawn}
