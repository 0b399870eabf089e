"""TreeVGR-RL-37K (HaochenWang/TreeVGR-RL-37K): one parquet; first free-form V* rows, then VisDrone rows with letters.

Columns: images ["images/0.jpg"], problem "<image>\\n…", answer, target_instances [{bbox in pixels, label, name}].
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import Studio, Writer, letter, lettered, parquet, save

FAMILIES = ("hrel", "vrel", "depth", "nearer")
LETTERED_SHARE = 5  # the last 1/5 of the rows has lettered options (7K of 37K in the real file)
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.string())),
        ("problem", pa.string()),
        ("answer", pa.string()),
        (
            "target_instances",
            pa.list_(pa.struct([("bbox", pa.list_(pa.float64())), ("label", pa.string()), ("name", pa.string())])),
        ),
    ]
)


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows: list[dict[str, object]] = []
    for n, q, rng in studio.questions(FAMILIES, count):
        save(folder / "images" / f"{n}.jpg", studio.jpeg(q.scenes[0], rng))
        things = [thing for name in q.targets if (thing := q.scenes[0].by_name(name)) is not None]
        has_letters = n >= count - count // LETTERED_SHARE
        options = "\n" + lettered(q.choices, between="\n") if has_letters else ""
        rows.append(
            {
                "images": [f"images/{n}.jpg"],
                "problem": f"<image>\n{q.text}{options}",
                "answer": letter(q) if has_letters else q.answer,
                "target_instances": [
                    {"bbox": [float(v) for v in t.box], "label": t.shape, "name": t.name} for t in things
                ],
            }
        )
    parquet(folder / "TreeVGR-RL-37K.parquet", rows, SCHEMA)


WRITER = Writer("train/TreeVGR-RL-37K", "train", _write)
