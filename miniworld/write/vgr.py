"""VGR (BytedanceDouyinContent/VGR): conversations whose reply contains the boxes, with images from LLaVA-NeXT's tree.

Files `vgr_shortcot.parquet` and `vgr_longcot.parquet`: image (path below `llava_next_raw_format/`), conversations. Boxes are
`<SOT>[x1, y1, x2, y2]<EOT><image>` with floats between 0 and 1. The short form states the answer after the boxes; the long form
has one sentence per box and the statement.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld import questions as qs
from miniworld.scene import BoxPx
from miniworld.write.studio import Studio, Writer, parquet, save

FAMILIES = ("hrel", "vrel", "depth")
IMAGES = "llava_next_raw_format"
SETS = ("coco/train2017", "gqa/images")
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)


def box_text(box: BoxPx, extent: tuple[int, int]) -> str:
    """A box in VGR's format, divided by the image's width and height."""
    return "<SOT>[" + ", ".join(f"{v / side:.4f}" for v, side in zip(box, extent * 2, strict=True)) + "]<EOT><image>"


def _reply(q: qs.Question, long: bool) -> str:
    things = [thing for name in q.targets if (thing := q.scenes[0].by_name(name)) is not None]
    sentences = [f"The {t.name} is at {box_text(t.box, q.scenes[0].extent)}." for t in things]
    statement = [qs.conclusion(q, q.answer)] if long else []
    return f"<think>{' '.join([*sentences, *statement])}</think>\n<answer>{q.answer}</answer>"


def _write(folder: Path, count: int, studio: Studio) -> None:
    files: tuple[list[dict[str, object]], list[dict[str, object]]] = ([], [])
    for n, q, rng in studio.questions(FAMILIES, count):
        name = f"{SETS[n % len(SETS)]}/{n:012d}.jpg"
        save(folder / IMAGES / name, studio.jpeg(q.scenes[0], rng))
        turns = [
            {"from": "human", "value": f"<image>\n{q.text}"},
            {"from": "gpt", "value": _reply(q, long=n % 2 == 1)},
        ]
        files[n % 2].append({"image": name, "conversations": turns})
    for kind, rows in zip(("short", "long"), files, strict=True):
        parquet(folder / f"vgr_{kind}cot.parquet", rows, SCHEMA)


WRITER = Writer("train/VGR", "train", _write)
