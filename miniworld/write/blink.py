"""BLINK, spatial tasks (BLINK-Benchmark/BLINK, split val): one parquet per task, up to four images in columns of their own.

The world has no drawn boxes to choose from, so the questions of Object_Localization are about distance here.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import HF_IMAGE, Studio, Writer, letter, lettered, parquet

TASKS = {
    "depth": "Relative_Depth",
    "hrel": "Spatial_Relation",
    "count": "Counting",
    "view": "Multi-view_Reasoning",
    "nearer": "Object_Localization",
}
IMAGES = tuple(f"image_{n}" for n in range(1, 5))
SCHEMA = pa.schema(
    [
        ("idx", pa.string()),
        ("question", pa.string()),
        ("sub_task", pa.string()),
        *((name, HF_IMAGE) for name in IMAGES),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("prompt", pa.string()),
    ]
)


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows: dict[str, list[dict[str, object]]] = {task: [] for task in TASKS.values()}
    for _, q, rng in studio.questions(tuple(TASKS), count):
        task = TASKS[q.family]
        files = [{"bytes": studio.png(scene, rng), "path": None} for scene in q.scenes]
        options = lettered(q.choices, "({letter}) {choice}", "\n")
        rows[task].append(
            {
                "idx": f"val_{task}_{len(rows[task]) + 1}",
                "question": q.text,
                "sub_task": task,
                **dict(zip(IMAGES, files, strict=False)),
                "choices": list(q.choices),
                "answer": f"({letter(q)})",
                "prompt": f"{q.text}\nSelect from the following choices.\n{options}",
            }
        )
    for task, of_task in rows.items():
        parquet(folder / task / "val-00000-of-00001.parquet", of_task, SCHEMA)


WRITER = Writer("bench/BLINK", "bench", _write)
