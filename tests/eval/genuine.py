"""Tiny data sets in the genuine formats, traps included, written independently of the miniature world's writers."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(shade: int, size: tuple[int, int] = (56, 56), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 0, 0)).save(out, "PNG", **options)
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


HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BLINK_TASKS = ("Counting", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation")
BLINK = pa.schema(
    [
        *((name, pa.string()) for name in ("idx", "question", "sub_task")),
        *((f"image_{n}", HF_IMAGE) for n in range(1, 5)),
        ("choices", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("answer", "prompt", "explanation")),
    ]
)


def blink_row(task: str, n: int = 1, shades: tuple[int, ...] = (1,), **changed: Any) -> dict[str, Any]:
    """A row of BLINK; what only `prompt` says ("circled") is not in `question`."""
    images = {f"image_{k}": {"bytes": png(shade), "path": None} for k, shade in enumerate(shades, 1)}
    options = "(A) A is closer\n(B) B is closer"
    row = {
        "idx": f"val_{task}_{n}",
        "question": "Which point is closer?",
        "sub_task": task,
        **images,
        "choices": ["A is closer", "B is closer"],
        "answer": "(B)",
        "prompt": f"Two points are circled. Which point is closer ({task}, {n})?\nSelect from the following choices.\n{options}",
    }
    return {**row, **changed}


def blink(bench: Path, rows: dict[str, list[dict[str, Any]]] | None = None) -> None:
    """One file per task; those of other tasks and of the test split, whose answers are hidden, are there too."""
    for task in (*BLINK_TASKS, "Jigsaw"):
        shades = (3, 4) if task == "Multi-view_Reasoning" else (2,)
        of_task = [blink_row(task, shades=shades)] if rows is None else rows.get(task, [])
        for split, held in (("val", of_task), ("test", [blink_row(task, answer="hidden")])):
            path = bench / "BLINK" / task / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(held, schema=BLINK), path)


MMSI = pa.schema(
    [
        ("id", pa.int64()),
        ("images", pa.list_(pa.binary())),
        *((name, pa.string()) for name in ("question_type", "question", "answer", "thought", "difficulty")),
        ("mean_normed_duration_seconds", pa.float64()),
    ]
)


def mmsi_row(n: int, shades: tuple[int, ...] = (1, 2), **changed: Any) -> dict[str, Any]:
    row = {
        "id": n,
        "images": [png(shade) for shade in shades],
        "question_type": "Motion (Cam.)",
        "question": f"In which direction are you moving ({n})?\nOptions: A: Left, while moving back, B: Forward, C: 1.5 m, 2 m, D: Right",
        "answer": "A",
        "thought": "",
        "difficulty": "easy",
    }
    return {**row, **changed}


def mmsi_bench(bench: Path, rows: list[dict[str, Any]] | None = None) -> None:
    more = mmsi_row(1, (5, 6, 7), question_type="Positional Relationship (Obj.-Reg.)", answer="C")
    path = bench / "MMSI-Bench" / "MMSI_Bench.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([mmsi_row(0), more] if rows is None else rows, schema=MMSI), path)


TREEBENCH_LETTERS = "ABCDEFGHIJK"
TREEBENCH = (
    *("index", "image", "question", "multi-choice options", *TREEBENCH_LETTERS),
    *("answer", "category", "l2-category", "target_instances"),
)
TREEBENCH_SIZE = (100, 60)


def treebench_row(
    n: int, options: tuple[str, ...] = ("red", "blue", "green", "None"), **changed: Any
) -> dict[str, Any]:
    """A row of TreeBench; "None" is an option's text, which readers that guess types lose."""
    row = {
        "index": n,
        "image": base64.b64encode(png(n, TREEBENCH_SIZE)).decode(),
        "question": f"What is the colour of the cup ({n})?",
        "multi-choice options": "\n".join(
            f"{letter}. {o}" for letter, o in zip(TREEBENCH_LETTERS, options, strict=False)
        ),
        **dict(zip(TREEBENCH_LETTERS, options, strict=False)),
        "answer": "D",
        "category": "Perception/Attributes",
        "l2-category": "colour",
        "target_instances": "[[10, 6, 50, 30], [60, 30, 90, 54]]",
    }
    return {**row, **changed}


def treebench(bench: Path, rows: list[dict[str, Any]] | None = None) -> None:
    path = bench / "TreeBench" / "TreeBench.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, TREEBENCH, delimiter="\t", lineterminator="\n", restval="")
        table.writeheader()
        table.writerows([treebench_row(0), treebench_row(1, target_instances="[]")] if rows is None else rows)


def write_all(root: Path) -> None:
    bench = root / "bench"
    for writer in (cv_bench, mindcube, mmvp, omnispatial, realworldqa, sat, blink, mmsi_bench, treebench):
        writer(bench)
