"""CV-Bench (nyu-visionx/CV-Bench): `test_2d.parquet` (Count, Relation) and `test_3d.parquet` (Depth, Distance).

Each file has `count` questions; benchmark columns CVB-2D and CVB-3D.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import HF_IMAGE, Studio, Writer, letter, lettered, parquet

TASKS = {
    "2D": {"hrel": "Relation", "vrel": "Relation", "count": "Count"},
    "3D": {"depth": "Depth", "nearer": "Distance"},
}
SOURCES = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
SCHEMA = pa.schema(
    [
        ("idx", pa.int64()),
        ("type", pa.string()),
        ("task", pa.string()),
        ("image", HF_IMAGE),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("prompt", pa.string()),
        ("filename", pa.string()),
        ("source", pa.string()),
    ]
)


def _write(folder: Path, count: int, studio: Studio) -> None:
    for half, tasks in TASKS.items():
        drawn = studio.named(half)
        rows = []
        for n, q, rng in drawn.questions(tuple(tasks), count):
            source = SOURCES[half][n % len(SOURCES[half])]
            options = lettered(q.choices, "({letter}) {choice}", "\n")
            rows.append(
                {
                    "idx": n,
                    "type": half,
                    "task": tasks[q.family],
                    "image": {"bytes": drawn.png(q.scenes[0], rng), "path": None},
                    "question": q.text,
                    "choices": list(q.choices),
                    "answer": f"({letter(q)})",
                    "prompt": f"{q.text} Select from the following choices.\n{options}",
                    "filename": f"img/{half}/{tasks[q.family].lower()}/{source.lower()}_{n}.png",
                    "source": source,
                }
            )
        parquet(folder / f"test_{half.lower()}.parquet", rows, SCHEMA)
        studio.entries += drawn.entries


WRITER = Writer("bench/CV-Bench", "bench", _write)
