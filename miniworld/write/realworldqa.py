"""RealWorldQA (xai-org/RealworldQA): parquet with image, question, answer.

The question contains the options and the sentence that requests the letter only.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from miniworld.write.studio import HF_IMAGE, Studio, Writer, letter, lettered, parquet

FAMILIES = ("hrel", "vrel", "depth")
SENTENCE = "Please answer directly with only the letter of the correct option and nothing else."
SCHEMA = pa.schema([("image", HF_IMAGE), ("question", pa.string()), ("answer", pa.string())])


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows = []
    for n, q, rng in studio.questions(FAMILIES, count):
        rows.append(
            {
                "image": {"bytes": studio.png(q.scenes[0], rng), "path": f"{n}.png"},
                "question": f"{q.text}\n\n{lettered(q.choices, between=chr(10))}\n{SENTENCE}",
                "answer": letter(q),
            }
        )
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows, SCHEMA)


WRITER = Writer("bench/RealworldQA", "bench", _write)
