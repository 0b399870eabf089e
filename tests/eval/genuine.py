"""Tiny data sets in the genuine formats, traps included, written independently of the miniature world's writers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 56), (shade % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


def save(path: Path, shade: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def cv_bench(bench: Path) -> None:
    for half, count in (("2D", 3), ("3D", 2)):
        rows = [
            {
                "idx": n,
                "type": half,
                "task": "Count",
                "image": {"bytes": png(n), "path": None},
                "question": f"How many cars ({half}, {n})?",
                "choices": ["3", "1", "2"],
                "answer": "(B)" if n < 2 else "(F)",  # (F) is no option here: dropped under a reason
                "prompt": "unused",
                "source": "COCO",
            }
            for n in range(count)
        ]
        parquet(bench / "CV-Bench" / f"test_{half.lower()}.parquet", rows)


def mindcube(bench: Path) -> None:
    rows = [
        {
            "id": "among_1",
            "category": ["p"],
            "type": "t",
            "meta_info": [[1]],
            "question": "Compare view A. and view B. Which is left? A. the box B. the chair C. none",
            "images": ["other/1.png", "other/2.png", "other/3.png"],
            "gt_answer": "B",
        },
        {
            "id": "aroundnew_2",
            "question": "Where? A. here B. there",
            "images": ["other/1.png", "other/2.png"],
            "gt_answer": "A",
        },
        {"id": "rotation_3", "question": "No options here", "images": ["other/1.png", "other/2.png"], "gt_answer": "A"},
    ]
    path = bench / "MindCube" / "data" / "raw" / "MindCube_tinybench.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for k in (1, 2, 3):
        save(bench / "MindCube" / "data" / "other" / f"{k}.png", k)


def mmvp(bench: Path, index_name: str = "lndex") -> None:
    folder = bench / "MMVP"
    folder.mkdir(parents=True)
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8-sig") as out:
        table = csv.writer(out)
        table.writerow([index_name, "Question", "Options", "Correct Answer"])
        for index, answer in ((1, "(a)"), (2, "(b)"), (99, "(a)"), (100, "(b)")):
            table.writerow([index, "Are the wings open?", "(a) Open (b) Closed", answer])
            save(folder / "MMVP Images" / f"{index}.jpg", index)


def omnispatial(bench: Path) -> None:
    folder = bench / "OmniSpatial"
    rows = [
        {
            "id": "0_0",
            "question": "Q",
            "options": ["a", "b"],
            "answer": 1,
            "task_type": "Complex_Logic",
            "sub_task_type": "x",
        },
        {
            "id": "0_0",
            "question": "Q",
            "options": ["c", "d"],
            "answer": 0,
            "task_type": "Perspective_Taking",
            "sub_task_type": "x",
        },
        {
            "id": "1_0",
            "question": "Q",
            "options": [],
            "answer": "Three",
            "task_type": "Complex_Logic",
            "sub_task_type": "x",
        },
        {
            "id": "1_1",
            "question": "Q",
            "options": ["a", "b"],
            "answer": 7,
            "task_type": "Complex_Logic",
            "sub_task_type": "x",
        },
    ]
    for name in ("Complex_Logic/0", "Complex_Logic/1", "Perspective_Taking/0"):
        save(folder / f"{name}.png")
    (folder / "data.json").write_text(json.dumps(rows))


def realworldqa(bench: Path) -> None:
    letter = "Please answer directly with only the letter of the correct option and nothing else."
    word = "Please answer directly with a single word or number."
    rows = [
        {
            "image": {"bytes": png(1), "path": "1.png"},
            "question": f"Which way?\n\nA. Left\nB. Right\nC. Straight\n{letter}",
            "answer": "C",
        },
        {"image": {"bytes": png(2), "path": "2.png"}, "question": f"How many lanes? {word}", "answer": "3"},
    ]
    parquet(bench / "RealworldQA" / "data" / "test-00000-of-00001.parquet", rows)


def sat(bench: Path) -> None:
    rows = [
        {
            "image_bytes": [png(1), png(2)],
            "question": "Moved?",
            "answers": ["left", "right"],
            "correct_answer": "right",
            "question_type": "obj_movement",
        },
        {
            "image_bytes": [png(3)],
            "question": "Closer?",
            "answers": ["the sofa", "the lamp"],
            "correct_answer": "the bed",
            "question_type": "x",
        },
    ]
    parquet(bench / "SAT" / "SAT_test.parquet", rows)


def write_all(root: Path) -> None:
    bench = root / "bench"
    for writer in (cv_bench, mindcube, mmvp, omnispatial, realworldqa, sat):
        writer(bench)
