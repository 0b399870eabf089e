"""Memory of the loaders with many rows, and with one large row group: peak of fresh processes over the smallest one's.

Rows are in TreeVGR's and VisCoT's genuine formats, all over one image. The row group holds image-sized bytes in a nested
column, as SAT's 5.2 GB one does (a reader that loads more than 2 GB at once fails: pyarrow cannot chunk nested columns).

Command: `python -m perf.stream` (`--rows 10000 1000000 --gigabytes 2.5`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perf import common

BATCH = 10_000  # rows written at a time
CELL = 64 << 10  # bytes per image in the large row group


def main() -> None:
    """Print the table; with --child, read one folder and print its figures."""
    arguments = argparse.ArgumentParser(description="memory of the loaders over many rows and a large row group")
    arguments.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    arguments.add_argument("--sources", nargs="*", choices=("treevgr", "viscot"), default=["treevgr", "viscot"])
    arguments.add_argument("--gigabytes", type=float, default=1.0, help="of the row group (0: none)")
    arguments.add_argument("--child", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        print(json.dumps(read(*args.child)))
        return
    rows: list[tuple[str, ...]] = []
    for name, write in (("treevgr", write_treevgr), ("viscot", write_viscot)):
        if name not in args.sources:
            continue
        first = None
        for count in args.rows:
            result = measured(name, count, write)
            first = first or result
            rows.append(_row(f"{name}, {count:,} rows", result, first, count))
    if args.gigabytes:
        rows_in = max(1, round(args.gigabytes * 1e9 / CELL))
        small = measured("sat", 500, write_row_group)
        large = measured("sat", rows_in, write_row_group)
        rows.append(_row(f"one row group of {500 * CELL / 1e9:.2f} GB", small, small, 500))
        rows.append(_row(f"one row group of {args.gigabytes:g} GB", large, small, rows_in))
    words = "Each row is a separate process. `sat` is read as rows (its loader also writes images)."
    common.show("Loaders", words, ("read", "rows per second", "peak memory, MB", "over the first of its kind"), rows)


def _row(title: str, result: dict[str, float], first: dict[str, float], expected: int) -> tuple[str, ...]:
    if result["rows"] != expected:
        sys.exit(f"error: {title}: {result['rows']} rows were read")
    return (
        title,
        f"{result['rows'] / result['seconds']:,.0f}",
        f"{result['peak'] / 1024:.0f}",
        f"{result['peak'] / first['peak']:.2f}",
    )


def measured(name: str, count: int, write: Any) -> dict[str, float]:
    """Write a folder with `count` rows, read it in its own process, and return the figures that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", f"import perf.stream as s; s.{write.__name__}({folder!r}, {count})"]
        subprocess.run(command, check=True)  # another process, so that the peak is the reader's
        done = subprocess.run(
            [sys.executable, "-m", "perf.stream", "--child", name, folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def read(name: str, folder: str) -> dict[str, float]:
    """Rows, seconds and peak kilobytes of reading a folder through its loader (of "sat": its rows)."""
    from data_curation import source

    began = time.perf_counter()
    if name == "sat":
        count = sum(1 for _ in source.parquet_rows(Path(folder) / "SAT_train.parquet", ("image_bytes", "question")))
    else:
        context = source.Context(Path(folder), Path(folder) / "out", 0, 4, source.Tally())
        count = sum(1 for _ in source.source(name).read(context))
    seconds = time.perf_counter() - began
    return {"rows": count, "seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def _write_image(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((640, 427), 64).convert("RGB").save(path)


def _questions(count: int) -> Iterator[tuple[int, str, str]]:
    kinds = ("Is thing {} left or right of the door?", "What color is thing {}?", "How many things like {} are there?")
    answers = ("left", "red", "3")
    for i in range(count):
        yield i, kinds[i % 3].format(i), answers[i % 3]


def write_treevgr(folder: str, count: int) -> None:
    """A TreeVGR data set with `count` rows over one image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _write_image(Path(folder) / "images" / "0.jpg")
    box = [{"bbox": [10.0, 20.0, 100.0, 200.0], "label": "thing", "name": "a thing"}]
    out: Any = None
    batch: list[dict[str, Any]] = []
    for i, question, answer in _questions(count):
        problem = f"<image>\n{question}"
        batch.append({"images": ["images/0.jpg"], "problem": problem, "answer": answer, "target_instances": box})
        if len(batch) == BATCH or i + 1 == count:
            table = pa.Table.from_pylist(batch)
            out = out or pq.ParquetWriter(Path(folder) / "train.parquet", table.schema)
            out.write_table(table)
            batch = []
    out.close()


def write_viscot(folder: str, count: int) -> None:
    """A VisCoT data set with `count` records of one set over one image."""
    _write_image(Path(folder) / "cot_image_data" / "gqa" / "1.jpg")
    metadata = Path(folder) / "metadata" / "gqa_cot_train.jsonl"
    metadata.parent.mkdir()
    with metadata.open("w", encoding="utf-8") as out:
        for _, question, answer in _questions(count):
            record = {
                "question": question, "answer": answer, "full_answer": answer, "image": "1.jpg", "width": 640,
                "height": 427, "bboxs": [[10, 20, 100, 200]], "dataset": "gqa", "split": "train",
            }  # fmt: skip
            out.write(json.dumps(record) + "\n")


def write_row_group(folder: str, count: int) -> None:
    """A parquet file whose only row group has `count` rows of 64 KiB in a nested column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image_bytes", pa.list_(pa.binary())), ("question", pa.string())])
    data = os.urandom(CELL)
    rows = [{"image_bytes": [data], "question": "?"}] * 50
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    table = pa.Table.from_batches([batch] * (count // 50) + [batch.slice(0, count % 50)])  # one batch's memory
    path = Path(folder) / "SAT_train.parquet"
    pq.write_table(table, path, row_group_size=count, compression="none", use_dictionary=False, write_batch_size=16)
    if pq.ParquetFile(path).num_row_groups != 1:
        raise AssertionError("more than one row group was written")


if __name__ == "__main__":
    main()
