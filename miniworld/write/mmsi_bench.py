"""MMSI-Bench (RunsenXu/MMSI-Bench): two images per question as bytes in a list, with the options inside the question."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import Studio, Writer, letter, lettered, parquet

TYPES = {"view": "Positional Relationship (Cam.–Obj.)", "moved": "Motion (Obj.)"}
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("images", pa.list_(pa.binary())),
        ("question_type", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("thought", pa.string()),
        ("mean_normed_duration_seconds", pa.float64()),
        ("difficulty", pa.string()),
    ]
)


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows = [
        {
            "id": n,
            "images": [studio.png(scene, rng) for scene in q.scenes],
            "question_type": TYPES[q.family],
            "question": f"{q.text}\nOptions: {lettered(q.choices, '{letter}: {choice}', ', ')}",
            "answer": letter(q),
            "thought": "",
            "mean_normed_duration_seconds": 1.0,
            "difficulty": "medium",
        }
        for n, q, rng in studio.questions(tuple(TYPES), count)
    ]
    parquet(folder / "MMSI_Bench.parquet", rows, SCHEMA)


WRITER = Writer("bench/MMSI-Bench", "bench", _write)
