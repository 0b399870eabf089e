"""Each source reads a small file in its genuine format that contains every known defect, and counts each dropped record."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_curation.source import Drop, Tally, image_size, names, parquet_rows, source, tidy_boxes
from data_curation.sources import vgr
from fgrpo.errors import UserError
from fgrpo.types import Box
from miniworld.write.sat import SCHEMA as SAT_SCHEMA

from .conftest import Reader, encoded, save_image, shipped, write_parquet


def by_id(samples: list[Any]) -> dict[str, Any]:
    return {sample.id: sample for sample in samples}


# --- SAT -------------------------------------------------------------------------------------------------------------
def sat_row(
    images: list[bytes] | None, answers: list[str], correct: str, question: str = "Which way?"
) -> dict[str, Any]:
    return {
        "image_bytes": images, "question": question, "answers": answers, "correct_answer": correct, "question_type": "other"
    }  # fmt: skip


def test_sat(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    png, jpeg = encoded(photo.resize((64, 48)), "PNG"), encoded(photo, "JPEG")
    rows = [
        sat_row([png], ["left", "right"], "left"),
        sat_row([png, jpeg], ["Yes", "No"], "No"),
        sat_row([jpeg], ["left", "right"], "up"),
        sat_row([b"no picture"], ["left", "right"], "left"),
        sat_row([jpeg[: len(jpeg) // 2]], ["left", "right"], "left"),
        sat_row([], ["left", "right"], "left"),
        sat_row([png], ["left"], "left"),
        sat_row([png], ["left", "left"], "left"),
        sat_row([png], ["left", "right"], "left", question="  "),
    ]
    write_parquet(tmp_path / "SAT" / "SAT_train.parquet", rows, SAT_SCHEMA)
    write_parquet(tmp_path / "SAT" / "SAT_test.parquet", rows[:1], SAT_SCHEMA)  # not a training record
    samples, tally = read("sat", tmp_path / "SAT")
    assert [s.id for s in samples] == ["sat/train/0", "sat/train/1"]
    assert tally.to_dict() == {
        "records": 9,
        "kept": 2,
        "dropped": {
            "answer_not_among_options": 1,
            "corrupt_image": 2,
            "no_image": 1,
            "fewer_than_two_answers": 2,
            "no_question": 1,
        },
        "notes": {},
    }
    assert Path(samples[1].images[1]).read_bytes() == jpeg  # written out byte for byte
    assert Path(samples[1].images[0]).suffix == ".png"
    assert samples[1].answer == "No" and set(samples[1].choices) == {"Yes", "No"}
    assert samples[0].boxes is None


def test_sat_draws_the_option_order_from_the_seed(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    png = encoded(photo.resize((32, 32)), "PNG")
    write_parquet(
        tmp_path / "SAT" / "train.parquet", [sat_row([png], ["left", "right"], "left") for _ in range(60)], SAT_SCHEMA
    )
    orders = [tuple(s.choices for s in read("sat", tmp_path / "SAT", seed)[0]) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert 15 < sum(c == ("left", "right") for c in orders[0]) < 45


def test_sat_writes_an_image_once(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    png = encoded(photo.resize((32, 32)), "PNG")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the hub's other form of an image
    schema = SAT_SCHEMA.set(0, pa.field("image_bytes", pa.list_(struct)))
    write_parquet(
        tmp_path / "SAT" / "SAT_train.parquet", [sat_row([{"bytes": png, "path": None}], ["a", "b"], "a")], schema
    )  # type: ignore[list-item]
    first = Path(read("sat", tmp_path / "SAT")[0][0].images[0])
    stamp = first.stat().st_mtime_ns
    assert Path(read("sat", tmp_path / "SAT")[0][0].images[0]).stat().st_mtime_ns == stamp
    first.write_bytes(png[:10])  # half written before a kill
    read("sat", tmp_path / "SAT")
    assert first.read_bytes() == png


# --- VGR -------------------------------------------------------------------------------------------------------------
def vgr_row(image: str | None, question: str, reply: str | None) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    return {"image": image, "conversations": turns + ([{"from": "gpt", "value": reply}] if reply is not None else [])}


def test_vgr(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    tree = tmp_path / "VGR" / "llava_next_raw_format"
    save_image(tree / "coco" / "train2017" / "1.jpg", photo)
    save_image(tree / "gqa" / "images" / "2.png", photo)
    coco, gqa = "coco/train2017/1.jpg", "gqa/images/2.png"
    unit = "<SOT>[0.1, 0.2, 0.5, 0.6]<EOT><image>"
    rows = [
        vgr_row(coco, "Is the car left or right of the tree?", f"<think>See {unit}.</think>\n<answer>left</answer>"),
        vgr_row(coco, "What colour is it?\nA. red\nB. green\nAnswer with the option's letter from the given choices directly.",
                "It is <sot>[10, 20, 300, 400]<eot>. The answer is B."),
        vgr_row(gqa, "Is it day or night?", "<SOT>[0.1,0.2,0.5,0.6] no end tag, [0.2, 0.2, 0.6, 0.7]<EOT>, <SOT> alone <image>\nday"),
        vgr_row(gqa, "How many men?", "<SOT>[560, 20, 660, 100]<EOT><SOT>[0.5, 0.5, 0.5, 0.9]<EOT>\nAnswer: 3"),
        vgr_row(gqa, "Is there a cat?", "No box here.\nYes."),
        vgr_row(gqa, "Is it full or empty?", "<SOT>[0.5, 0.5, 1.02, 0.9]<EOT>\nfull"),  # over the edge, and no pixels
        vgr_row(coco, "Is the car left or right of the tree?", f"{unit}\nleft"),  # the short form of the first
        vgr_row("ai2d/1.png", "Q", f"{unit}\nleft"),
        vgr_row("ocr_vqa/images/1.jpg", "Q", f"{unit}\nleft"),
        vgr_row("dvqa/images/1.png", "Q", f"{unit}\nleft"),
        vgr_row("docvqa/1.png", "Q", f"{unit}\nleft"),
        vgr_row("chartqa/train/1.png", "Q", f"{unit}\nleft"),
        vgr_row("coco/train2017/none.jpg", "Is it wet or dry?", f"{unit}\nwet"),
        vgr_row("coco/../../secret.jpg", "Is it on or off?", f"{unit}\non"),
        vgr_row(coco, "Is it open or closed?", f"{unit}\n<think>only thoughts"),
        vgr_row(coco, "Is it old or young?", "<SOT>[900, 900, 1000, 1000]<EOT>\nold"),
        vgr_row(coco, "Describe.", f"{unit}\nA long sentence about many things which is no short answer"),
        vgr_row(coco, "Which?\nA. cat\nB. dog", f"{unit}\nThe answer is E."),
        vgr_row(coco, "What brand is this?", f"{unit}\nAcme"),
        vgr_row(coco, "No reply?", None),
        vgr_row(coco, "Nothing?", unit),
        vgr_row(None, "Q", f"{unit}\nleft"),
    ]  # fmt: skip
    rows[4]["conversations"] += [{"from": "human", "value": "And a dog?"}, {"from": "gpt", "value": "No."}]
    write_parquet(tmp_path / "VGR" / "vgr_shortcot.parquet", rows)
    samples, tally = read("vgr", tmp_path / "VGR")
    by_sample_id = by_id(samples)
    assert tally.dropped == {
        "duplicate_question": 1,
        "not_natural_images": 5,
        "missing_image": 1,
        "image_path_leads_out": 1,
        "boxes_beyond_image": 1,
        "answer_is_a_sentence": 1,
        "answer_not_among_options": 1,
        "no_distractors": 1,
        "no_exchange": 1,
        "no_answer": 2,
        "no_image": 1,
    }
    assert tally.kept == 6 and tally.records == len(rows)
    assert tally.notes == {  # of records that stay
        "orphan_tag": 1, "only_first_exchange": 1, "box_clipped": 2, "box_without_area": 1, "no_box": 1,
    }  # fmt: skip
    assert by_sample_id["vgr/shortcot/0"].boxes == (Box(0.1, 0.2, 0.5, 0.6, "unit"),)
    assert by_sample_id["vgr/shortcot/0"].question == "Is the car left or right of the tree?"
    second = by_sample_id["vgr/shortcot/1"]
    assert (second.question, second.choices, second.answer) == ("What colour is it?", ("red", "green"), "green")
    assert second.boxes == (Box(10, 20, 300, 400, "original"),)
    assert by_sample_id["vgr/shortcot/2"].boxes == (Box(0.1, 0.2, 0.5, 0.6, "unit"), Box(0.2, 0.2, 0.6, 0.7, "unit"))
    assert by_sample_id["vgr/shortcot/3"].boxes == (Box(560, 20, 640, 100, "original"),)
    assert by_sample_id["vgr/shortcot/3"].answer == "3" and len(by_sample_id["vgr/shortcot/3"].choices) == 4
    assert by_sample_id["vgr/shortcot/5"].boxes == (Box(0.5, 0.5, 1.0, 0.9, "unit"),)
    assert by_sample_id["vgr/shortcot/4"].boxes is None and set(by_sample_id["vgr/shortcot/4"].choices) == {"Yes", "No"}


def test_vgr_phrases_sentences_and_unclear_options(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    save_image(tmp_path / "VGR" / "llava_next_raw_format" / "coco" / "1.jpg", photo)
    unit = "<SOT>[0.1, 0.2, 0.5, 0.6]<EOT><image>"
    asked = [
        ("What color is the hat?", "The answer to the question is red."),
        ("Which is it?\nA. left\nB. right", "So it is \\boxed{B}."),
        ("What is the color of the hat of the man?", "The color of the hat is red."),
        ("Is it wet?", "Yes, it is wet."),
        ("What color is it?", "It is either red or blue."),
        ("Which? A. cat near view B. today B. dog", "A"),
        ("Which? A. cat B. cat", "A"),
        ("How many now? (A)1 (B)2", "(B)2"),
        ("Is it day or night?", 'It is at {"bbox_2d": [1, 2, 3, 4]}.\nday'),
    ]
    rows = [vgr_row("coco/1.jpg", question, f"{unit}\n{reply}") for question, reply in asked]
    write_parquet(tmp_path / "VGR" / "vgr_shortcot.parquet", rows)
    samples, tally = read("vgr", tmp_path / "VGR")
    assert [s.answer for s in samples] == ["red", "right", "The color of the hat is red", "Yes", "2", "day"]
    assert all(s.answer in s.choices for s in samples)
    assert all(c.startswith("The color of the hat is ") for c in samples[2].choices)
    assert tally.dropped == {"open_answer": 1, "unclear_options": 1, "equal_options": 1}
    assert tally.notes == {"box_in_another_form": 1}


# --- VisCoT ----------------------------------------------------------------------------------------------------------
def viscot_row(question: str, answer: str, image: str, boxes: Any, **more: Any) -> dict[str, Any]:
    return {
        "question": question, "answer": answer, "full_answer": answer, "image": image, "width": 640, "height": 427,
        "bboxs": boxes, "dataset": "gqa", "split": "train", **more,
    }  # fmt: skip


def viscot_rows() -> dict[str, list[dict[str, Any]]]:
    """Records of every set, with each trap of the data set once."""
    box = [[10, 20, 100, 200]]
    return {
        "gqa": [
            viscot_row("Is the man to the left or to the right of the boat?", "left", "1.jpg", box),
            viscot_row(
                "What color is the sky?", "blue", "1.jpg", [[10, 20, 100, 200], [10, 20, 100, 200], ["x", 1, 2, 3]]
            ),
            viscot_row("What is the man holding?", "umbrella", "1.jpg", box, possible_answers=["parasol"]),
            viscot_row("What is the woman holding?", "parasol", "1.jpg", box),
            viscot_row("What is the girl holding?", "kite.", "1.jpg", box),
            viscot_row("What is the boy holding?", "red kite", "1.jpg", box),
            viscot_row("Is it day or night?", "day", "lost.jpg", box),
            viscot_row("Is it wet or dry?", "wet", "broken.jpg", box),
            viscot_row("Is it open or closed?", "open", "1.jpg", [[700, 500, 800, 600]]),
            viscot_row("Is it on or off?", "on", "1.jpg", box, width=1280),
            viscot_row("Is it old or young?", " ", "1.jpg", box),
            viscot_row("Is it tall or short?", "tall", "only.jpg", []),  # lies in one other folder only
        ],
        "textcap": [viscot_row("Is it big or small?", "big", "t.jpg", box)],
        "visual7w": [viscot_row("Is it indoors or outdoors?", "outdoors", "v.jpg", box)],
        "cub": [viscot_row("What is the color of the bird's wing?", "brown", "c.jpg", box)],
        "openimages": [viscot_row("Is the boat big or small?", "small", "only.jpg", box)],
        "vsr": [viscot_row("Is the cat near or far?", "near", "1.jpg", box)],
        "flickr30k": [
            viscot_row("Can you describe it?", "A man in a red coat walks his dog along the quay", "1.jpg", box)
        ],
        "docvqa": [viscot_row("What is the date?", "May", "d.jpg", box)] * 2,
        "sroie": [viscot_row("What is the sum?", "3", "s.jpg", box)],
        "dude": [viscot_row("Who?", "me", "s.jpg", box)],
        "infographicsvqa": [viscot_row("Who?", "me", "s.jpg", box)],
    }


def test_viscot(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    folder = tmp_path / "VisCoT"
    images = folder / "cot_images"
    save_image(images / "gqa" / "1.jpg", photo)
    save_image(images / "textvqa" / "1.jpg", photo.resize((320, 200)))  # the same name in another set
    save_image(images / "textvqa" / "t.jpg", photo)
    save_image(images / "v7w" / "v.jpg", photo)
    save_image(images / "openimages" / "only.jpg", photo)
    save_image(images / "cub" / "c.jpg", photo)
    (images / "gqa" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for kind, rows in viscot_rows().items():
        path = folder / "metadata" / f"{kind}_cot_train.jsonl"
        path.parent.mkdir(exist_ok=True)
        torn = '{"question": "torn' if kind == "vsr" else ""
        path.write_text("".join(json.dumps(r) + "\n" for r in rows) + torn, encoding="utf-8")
    samples, tally = read("viscot", folder)
    by_sample_id = by_id(samples)
    assert tally.dropped == {
        "document_set": 5,
        "answer_is_a_sentence": 1,
        "missing_image": 1,
        "corrupt_image": 1,
        "boxes_beyond_image": 1,
        "image_size_differs": 1,
        "no_answer": 1,
        "ambiguous_image": 1,
        "not_json": 1,
    }
    assert tally.notes == {"unreadable_box": 1, "image_in_another_folder": 1}
    assert tally.kept == len(samples) == 11
    assert by_sample_id["viscot/train/gqa.0"].images == (str(images / "gqa" / "1.jpg"),)
    assert set(by_sample_id["viscot/train/gqa.0"].choices) == {"left", "right"}
    assert by_sample_id["viscot/train/gqa.1"].boxes == (Box(10, 20, 100, 200, "original"),)
    assert len(by_sample_id["viscot/train/gqa.1"].choices) == 4
    assert by_sample_id["viscot/train/textcap.0"].images == (str(images / "textvqa" / "t.jpg"),)
    assert by_sample_id["viscot/train/visual7w.0"].images == (str(images / "v7w" / "v.jpg"),)
    assert by_sample_id["viscot/train/gqa.11"].boxes is None
    holding = by_sample_id["viscot/train/gqa.2"]
    assert "parasol" not in holding.choices and {"umbrella", "kite"} <= set(holding.choices)
    kite = by_sample_id["viscot/train/gqa.4"]
    assert (
        kite.answer == "kite" and "red kite" not in kite.choices
    )  # an option that contains the answer would be true too


# --- TreeVGR ---------------------------------------------------------------------------------------------------------
def treevgr_row(problem: str, answer: str, boxes: list[list[float]], images: list[str] | None = None) -> dict[str, Any]:
    instances = [{"bbox": b, "label": "thing", "name": "a thing"} for b in boxes]
    return {"images": images or ["images/0.jpg"], "problem": problem, "answer": answer, "target_instances": instances}


def test_treevgr(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    folder = tmp_path / "TreeVGR-RL-37K"
    save_image(folder / "images" / "0.jpg", photo)
    box = [[10.0, 20.0, 100.0, 200.0]]
    rows = [
        treevgr_row("<image>\nIs the lamp left or right of the door?", "left", box),
        treevgr_row("<image>\nWhat color is the lamp?", "Red.", box),
        treevgr_row("<image>How many cars are there?\nOptions:\n(A) 3\n(B) 5\n(C) 7", "B", box * 2),
        treevgr_row("<image>\nHow many vans?\nA. 3\nB. 5", "E", box),
        treevgr_row("<image>\nHow many boats?", "C", box),
        treevgr_row("<image>\n", "left", box),
        treevgr_row("<image>\nIs it wet or dry?", "wet", box, ["images/1.jpg"]),
        treevgr_row("<image>\nIs it on or off?", "on", box, ["images/0.jpg", "images/0.jpg"]),
        treevgr_row("<image>\nIs it old or young?", "old", [[2000.0, 0.0, 2100.0, 50.0]]),
        treevgr_row("<image>\nWhat is written there?", "one two three four five six seven eight nine", box),
        treevgr_row("<image>\nWhat brand?", "Acme", box),
        treevgr_row("<image>\nIs it day or night?", "day", []),
        treevgr_row("<image>\nIs it day or night?", "day", [[0.0, 0.0, 1.0, 1.0]]),  # pixels, however small
    ]
    write_parquet(folder / "train.parquet", rows)
    samples, tally = read("treevgr", folder)
    by_sample_id = by_id(samples)
    assert tally.dropped == {
        "answer_not_among_options": 1,
        "letter_without_options": 1,
        "no_problem": 1,
        "missing_image": 1,
        "not_one_image": 1,
        "boxes_beyond_image": 1,
        "answer_is_a_sentence": 1,
        "no_distractors": 1,
    }
    assert tally.notes == {"no_box": 1}
    assert by_sample_id["treevgr/train/0"].question == "Is the lamp left or right of the door?"
    assert (
        by_sample_id["treevgr/train/1"].answer == "Red"
        and by_sample_id["treevgr/train/1"].answer in by_sample_id["treevgr/train/1"].choices
    )
    cars = by_sample_id["treevgr/train/2"]
    assert (cars.question, cars.choices, cars.answer) == ("How many cars are there?", ("3", "5", "7"), "5")
    assert cars.boxes == (Box(10, 20, 100, 200, "original"),)  # twice the same box is one box
    assert by_sample_id["treevgr/train/12"].boxes == (Box(0, 0, 1, 1, "original"),)


# --- real photographs, and what no machine takes --------------------------------------------------------------------
@pytest.mark.parametrize("name", ["china", "flower", "hopper"])
def test_photographs_as_packages_ship_them(name: str, tmp_path: Path, read: Reader) -> None:
    data = shipped()[name].read_bytes()
    rows = [sat_row([data], ["left", "right"], "left"), sat_row([data[:-1000]], ["left", "right"], "left")]
    write_parquet(tmp_path / "SAT" / "SAT_train.parquet", rows, SAT_SCHEMA)
    (kept,), tally = read("sat", tmp_path / "SAT")
    assert Path(kept.images[0]).read_bytes() == data and tally.dropped == {"corrupt_image": 1}
    folder = tmp_path / "TreeVGR-RL-37K"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "0.jpg").write_bytes(data)
    boxes = [[400.0, 300.0, 700.0, 650.0], [0.0, 0.0, 9.0, 9.0]]
    write_parquet(folder / "train.parquet", [treevgr_row("Is it wet or dry?", "wet", boxes)])
    (kept,), tally = read("treevgr", folder)
    width, height = {"hopper": (512, 600)}.get(name, (640, 427))
    inside = Box(400, 300, width, height, "original")
    beyond = (width - 400) * (height - 300) < 0.5 * 300 * 350
    assert kept.boxes == ((Box(0, 0, 9, 9, "original"),) if beyond else (inside, Box(0, 0, 9, 9, "original")))
    assert tally.notes == {"box_beyond_image" if beyond else "box_clipped": 1}


def test_overlong_names_and_numbers_are_counted(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    folder = tmp_path / "VisCoT"
    save_image(folder / "cot_images" / "gqa" / "1.jpg", photo)
    rows = [
        viscot_row("Is it wet or dry?", "wet", "1.jpg", [[10, 20, 10**400, 200], [10, 20, 100, 200]]),
        viscot_row("Is it on or off?", "on", "a" * 300 + ".jpg", [[10, 20, 100, 200]]),
        viscot_row("What is the code?", "9" * 5000, "1.jpg", [[10, 20, 100, 200]]),
    ]
    (folder / "metadata").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata" / "gqa_cot_train.jsonl").write_text(lines, encoding="utf-8")
    (kept,), tally = read("viscot", folder)
    assert kept.boxes == (Box(10, 20, 100, 200, "original"),) and tally.notes == {"unreadable_box": 1}
    assert tally.dropped == {"missing_image": 1, "no_distractors": 1}


# --- what all share --------------------------------------------------------------------------------------------------
def test_sources_are_discovered_by_module_name() -> None:
    assert set(names()) >= {"sat", "treevgr", "vgr", "viscot"}
    assert all(source(name).name == name for name in names())
    with pytest.raises(UserError, match="did you mean 'viscot'"):
        source("viscott")


@pytest.mark.parametrize("name", ["sat", "vgr", "treevgr"])
def test_a_corrupt_parquet_file_is_a_clear_error(name: str, tmp_path: Path, read: Reader) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as parquet after row 0"):
        read(name, tmp_path)


def test_a_damaged_parquet_file_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [f"{i:064d}" for i in range(5000)]})
    pq.write_table(table, path, compression="none", row_group_size=500, use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = b"\x00" * 20000
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"after row [1-9]\d+ "):
        list(parquet_rows(path, ["a"]))


def test_a_missing_column_is_named(tmp_path: Path, read: Reader) -> None:
    write_parquet(tmp_path / "train.parquet", [{"images": ["a"], "problem": "x"}])
    with pytest.raises(UserError, match="has no column answer, target_instances"):
        read("treevgr", tmp_path)


def test_a_row_group_is_never_completely_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    schema = pa.schema([("image_bytes", pa.list_(pa.binary())), ("question", pa.string())])
    size, rows = 64 << 10, 512  # 32 MiB in one row group
    with pq.ParquetWriter(
        path, schema, compression="none", data_page_size=1 << 20, use_dictionary=False, write_batch_size=16
    ) as out:
        table = pa.Table.from_pylist(
            [{"image_bytes": [os.urandom(size)], "question": "?"} for _ in range(rows)], schema=schema
        )
        out.write_table(table, row_group_size=rows)
    del table
    assert pq.ParquetFile(path).num_row_groups == 1
    base, most, count = pa.total_allocated_bytes(), 0, 0
    for _ in parquet_rows(path, ["image_bytes", "question"]):
        count += 1
        most = max(most, pa.total_allocated_bytes() - base)
    assert count == rows
    assert most < 12 << 20


def test_boxes_are_clipped_dropped_and_counted_once() -> None:
    tally = Tally()
    kept = tidy_boxes(
        [
            Box(-10, 0, 50, 50, "original"),
            Box(90, 90, 300, 300, "original"),
            Box(5, 5, 5, 9, "original"),
            Box(0.5, 0.5, 1, 1, "unit"),
        ],
        (100, 100),
        tally,
    )
    assert kept == (Box(0, 0, 50, 50, "original"), Box(0.5, 0.5, 1, 1, "unit"))
    assert tally.notes == {"box_clipped": 1, "box_beyond_image": 1, "box_without_area": 1}


def test_a_photograph_rotated_by_exif_is_dropped_because_its_boxes_are_ambiguous(
    tmp_path: Path, read: Reader, photo: Image.Image
) -> None:
    folder = tmp_path / "TreeVGR-RL-37K"
    (folder / "images").mkdir(parents=True)
    for name, orientation in (("0.jpg", 6), ("1.jpg", 1), ("2.jpg", 2)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(folder / "images" / name, exif=exif)
    rows = [treevgr_row("Is it wet or dry?", "wet", [[1.0, 1.0, 9.0, 9.0]], [f"images/{n}.jpg"]) for n in range(3)]
    write_parquet(folder / "train.parquet", rows)
    samples, tally = read("treevgr", folder)
    assert [s.id for s in samples] == ["treevgr/train/1"] and tally.dropped == {"turned_by_exif": 2}


def test_a_truncated_photograph_is_detected_without_decoding_it(tmp_path: Path, photo: Image.Image) -> None:
    whole, truncated = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    photo.save(whole)
    truncated.write_bytes(whole.read_bytes()[:-2000])
    assert image_size(whole) == (640, 427)
    longer = tmp_path / "longer.jpg"
    longer.write_bytes(whole.read_bytes() + b"a camera's own bytes" * 50)
    assert image_size(longer) == (640, 427)
    with pytest.raises(Drop, match="corrupt_image"):
        image_size(truncated)


def test_unusable_images_are_dropped_by_reason(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    folder = tmp_path / "VisCoT" / "cot_images" / "gqa"
    for name, image in (("good.jpg", photo), ("narrow.png", Image.new("RGB", (2001, 10))), ("cut.webp", photo)):
        save_image(folder / name, image)
    (folder / "cut.webp").write_bytes((folder / "cut.webp").read_bytes()[:-500])
    (folder / "empty.jpg").touch()
    header = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    header[16:24] = (13000).to_bytes(4, "big") * 2  # 169 megapixels
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(header)
    names_of = ("good.jpg", "narrow.png", "cut.webp", "empty.jpg", "huge.png", "/etc/passwd", "../gqa/good.jpg")
    lines = [
        json.dumps(viscot_row("Is it day or night?", "day", name, [], width=None, height=None)) for name in names_of
    ]
    (tmp_path / "VisCoT" / "metadata").mkdir()
    (tmp_path / "VisCoT" / "metadata" / "gqa_cot_train.jsonl").write_text("\n".join(lines))
    samples, tally = read("viscot", tmp_path / "VisCoT")
    assert len(samples) == 1
    assert tally.dropped == {
        "image_too_narrow": 1,
        "corrupt_image": 2,
        "too_many_pixels": 1,
        "image_path_leads_out": 2,
    }


def test_linked_folders_are_read(tmp_path: Path, read: Reader, photo: Image.Image) -> None:
    elsewhere = tmp_path / "other disk"
    write_parquet(elsewhere / "SAT_train.parquet", [sat_row([encoded(photo, "JPEG")], ["a", "b"], "a")], SAT_SCHEMA)
    (tmp_path / "SAT").mkdir()
    (tmp_path / "SAT" / "data").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path / "SAT")
    samples, _ = read("sat", tmp_path / "SAT")
    assert [s.id for s in samples] == ["sat/train/0"]


def test_long_replies_of_vgr_are_read_in_linear_time() -> None:
    tally = Tally()
    assert vgr.read_boxes("<sot>[" + "1" * 50_000, tally) == () and tally.notes["orphan_tag"] == 1
    assert len(vgr.read_boxes("<sot>[0.1, .2, 0.5 ,1]<eot>", tally)) == 1
    assert vgr._DIRECT.sub("", "q" + " " * 50_000 + "x").endswith("x")
    assert vgr._DIRECT.sub("", "Is it red?\n Answer the question using a single word or phrase.") == "Is it red?"
