"""SAT, training split (array/SAT): one parquet file with the images' bytes inside the rows.

Columns: image_bytes (list of one or two files), question, answers (two texts), correct_answer (text), question_type.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import Studio, Writer, parquet

FAMILIES = ("depth", "hrel", "vrel", "moved", "behind", "view")
TYPES = {"moved": "obj_movement", "behind": "perspective"}
SCHEMA = pa.schema(
    [
        ("image_bytes", pa.list_(pa.binary())),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("correct_answer", pa.string()),
    ]
)


def rows(studio: Studio, families: tuple[str, ...], count: int) -> list[dict[str, object]]:
    """Rows of SAT's schema, for either split."""
    return [
        {
            "image_bytes": [studio.png(scene, rng) for scene in q.scenes],
            "question": q.text,
            "answers": list(q.choices),
            "question_type": TYPES.get(q.family, "other"),
            "correct_answer": q.answer,
        }
        for _, q, rng in studio.questions(families, count)
    ]


def _write(folder: Path, count: int, studio: Studio) -> None:
    parquet(folder / "SAT_train.parquet", rows(studio, FAMILIES, count), SCHEMA)


WRITER = Writer("train/SAT", "train", _write)
