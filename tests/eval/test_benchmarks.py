"""Each loader on a tiny genuine file with the traps of its data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import genuine
import pytest

from eval import base, generate, models, summary
from eval.extract import extract_choice
from fgrpo import prompts
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Score


def test_cv_bench_halves_letters_and_drops(real_like: Config) -> None:
    two, three = base.load("cvb_2d", real_like), base.load("cvb_3d", real_like)
    assert [s.answer for s in two.samples] == ["1", "1"] and len(three.samples) == 2
    assert two.dropped == {"the answer is no letter of the choices": 1}
    assert Path(two.samples[0].images[0]).read_bytes().startswith(b"\x89PNG")


def test_images_are_extracted_once(real_like: Config) -> None:
    path = Path(base.load("cvb_2d", real_like).samples[0].images[0])
    before = path.stat().st_mtime_ns
    assert base.load("cvb_2d", real_like).samples[0].images[0] == str(path)
    assert path.stat().st_mtime_ns == before


def test_mindcube_splits_options_behind_a_view_a(real_like: Config) -> None:
    found = base.load("mindcube", real_like)
    first, second = found.samples
    assert first.question == "Compare view A. and view B. Which is left?"
    assert first.choices == ("the box", "the chair", "none") and first.answer == "the chair"
    assert len(first.images) == 3 and len(second.images) == 2
    assert second.meta["setting"] == "around"
    assert sum(found.dropped.values()) == 1


def test_mmvp_pairs_flags_and_the_misspelt_index(real_like: Config) -> None:
    samples = base.load("mmvp", real_like).samples
    assert [s.answer for s in samples] == ["Open", "Closed", "Open", "Closed"]
    assert samples[0].meta["group"] == samples[1].meta["group"] != samples[2].meta["group"]
    assert ["flag" in s.meta for s in samples] == [False, False, True, True]
    assert "MMVP Images" in samples[0].images[0]


def test_omnispatial_indices_repeated_ids_and_open_questions(real_like: Config) -> None:
    found = base.load("omnispatial", real_like)
    assert [s.answer for s in found.samples] == ["b", "c", "Three"]
    assert found.samples[2].choices == ()
    assert found.samples[0].id != found.samples[1].id
    assert found.samples[1].images[0].endswith("Perspective_Taking/0.png")
    assert found.dropped == {"the answer is no index of the options": 1}


@pytest.mark.parametrize(
    ("options", "answer", "choices", "gold"),
    [
        ([], 2, ("A", "B", "C", "D"), "C"),  # the choices are in the image
        (None, 0, ("A", "B", "C", "D"), "A"),
        ([], 5, ("A", "B", "C", "D", "E", "F"), "F"),
        ([], "B", ("A", "B", "C", "D"), "B"),
        ([], "Three", (), "Three"),
        ([], "3", (), "3"),
        (["x", "y"], 1, ("x", "y"), "y"),
        (["x", "y"], "0", ("x", "y"), "x"),
        (["x", "y"], "y", ("x", "y"), "y"),
        (["1", "0"], "1", (), None),  # by its text the first, by its index the second
        (["1", "0"], 1, ("1", "0"), "0"),
        (["0", "1"], "1", ("0", "1"), "1"),
        ([], 1.0, (), None),
        (["x", "y"], 2, (), None),
        ([], -1, (), None),
        ([], True, (), None),
        ([], 99, (), None),
    ],
)
def test_omnispatial_answers(
    real_like: Config, options: Any, answer: Any, choices: tuple[str, ...], gold: str | None
) -> None:
    path = Path(real_like.data.root) / "bench/OmniSpatial/data.json"
    good = json.loads(path.read_text())[0]
    path.write_text(json.dumps([good, {**good, "id": "0_7", "options": options, "answer": answer}, "no row"]))
    found = base.load("omnispatial", real_like)
    assert [(s.choices, s.answer) for s in found.samples[1:]] == ([] if gold is None else [(choices, gold)])
    assert found.dropped["not an object"] == 1 and sum(found.dropped.values()) == (2 if gold is None else 1)


def test_questions_with_choices_in_the_image_have_one_number_of_letters(real_like: Config) -> None:
    path = Path(real_like.data.root) / "bench/OmniSpatial/data.json"
    good = json.loads(path.read_text())[0]
    answers = ("B", 4, 0)
    path.write_text(json.dumps([{**good, "id": f"0_{n}", "options": [], "answer": a} for n, a in enumerate(answers)]))
    samples = base.load("omnispatial", real_like).samples
    assert [(s.choices, s.answer) for s in samples] == [(tuple("ABCDE"), letter) for letter in "BEA"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        *(({"choices": bad}, "the choices are no list of distinct texts") for bad in (5, "ab", {"A": "left"}, ["x", "x"], ["x", None], ["x", " "], [1, 2])),
        *(({"answer": bad}, "no question, or an answer that is none of the choices") for bad in (True, None, [], 2, -1, 1.0, "z")),
        ({"choices": ["B", "A"], "answer": "A"}, "no question, or an answer that is none of the choices"),
        ({"question": ["Q"]}, "no question, or an answer that is none of the choices"),
        ({"question": " "}, "no question, or an answer that is none of the choices"),
    ],
)  # fmt: skip
def test_rows_of_wrong_types_are_dropped(row: dict[str, Any], reason: str, real_like: Config, tmp_path: Path) -> None:
    folder = tmp_path / "bench/own"
    genuine.save(folder / "1.png")
    good = {"question": "Q", "image": "1.png", "choices": ["x", "y"], "answer": "y"}
    (folder / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (good, {**good, **row})))
    found = base.load("own", real_like)
    assert len(found.samples) == 1 and found.dropped == {reason: 1}


def test_choices_in_the_image_are_scored_by_letter() -> None:
    drawn = ("A", "B", "C", "D")
    assert prompts.options(drawn) == "(A)\n(B)\n(C)\n(D)" and prompts.options(("x", "B")) == "(A) x\n(B)"
    replies = (
        "C",
        "(C)",
        "The answer is C.",
        "<think>A line.</think><answer>c</answer>",
        "C. the third",
        "a line",
        "E",
    )
    assert [extract_choice(reply, drawn) for reply in replies] == [2, 2, 2, 2, 2, None, None]


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "a/../../../secret.png", None, 3, ""])
def test_image_paths_that_lead_out_are_dropped_and_counted(real_like: Config, name: Any) -> None:
    root = Path(real_like.data.root) / "bench"
    reason = "image_path_leads_out" if isinstance(name, str) and name else "no_image"
    path = root / "MindCube/data/raw/MindCube_tinybench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows.append({**rows[0], "id": "among_9", "images": [rows[0]["images"][0], name]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert base.load("mindcube", real_like).dropped[reason] == 1
    path = root / "OmniSpatial/data.json"
    rows = json.loads(path.read_text())
    leads_out = {"task_type": "../Complex_Logic"}, {"task_type": "/etc"}, {"id": "../x_0"}
    path.write_text(json.dumps([*rows, *({**rows[0], **change} for change in leads_out)]))
    assert (
        base.load("omnispatial", real_like).dropped["image_path_leads_out"] == 3
    )  # "Complex_Logic//etc/x.png" is below
    genuine.save(root / "own/1.png")
    own = ({"question": "Q", "answer": "x", "images": [name]}, {"question": "Q", "answer": "x", "image": "1.png"})
    (root / "own/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    assert base.load("own", real_like).dropped == {reason: 1}


def test_realworldqa_takes_options_and_the_direct_sentence_out(real_like: Config) -> None:
    lettered, word = base.load("realworldqa", real_like).samples
    assert lettered.question == "Which way?" and lettered.choices == ("Left", "Right", "Straight")
    assert lettered.answer == "Straight"
    assert word.question == "How many lanes?" and word.choices == () and word.answer == "3"


def test_the_direct_sentence_returns_for_direct_open_questions_only(real_like: Config) -> None:
    _, word = base.load("realworldqa", real_like).samples
    texts = {}
    for name in ("qwen2.5-vl-7b-direct", "qwen2.5-vl-7b-cot"):
        texts[name] = generate.jobs([word], models.load(name), real_like)[0].request.text
    assert "single word or number" in texts["qwen2.5-vl-7b-direct"]
    assert "answer directly" not in texts["qwen2.5-vl-7b-cot"] and "<think>" in texts["qwen2.5-vl-7b-cot"]


def test_sat_real_asks_each_question_in_both_orders(real_like: Config) -> None:
    found = base.load("sat_real", real_like)
    first, second = found.samples
    assert first.choices == ("left", "right") and second.choices == ("right", "left")
    assert first.answer == second.answer == "right" and len(first.images) == 2
    assert base.group_of(first) == base.group_of(second)
    assert sum(found.dropped.values()) == 1


def test_the_swapped_order_reaches_a_prompt_without_options(world: Config) -> None:
    pair = base.load("sat_real", world).samples[:2]
    texts = [job.request.text for job in generate.jobs(pair, models.load("fgrpo"), world) if job.kind == "greedy"]
    assert texts[0] != texts[1]
    first, second = pair[0].choices
    assert f"{first} or {second}" in texts[0] and f"{second} or {first}" in texts[1]


@pytest.mark.parametrize("name", load("smoke").eval.benchmarks)
def test_every_loader_reads_the_miniature_world(name: str, world: Config) -> None:
    found = base.load(name, world)
    assert len(found.samples) == (8 if name == "sat_real" else 4) and not found.dropped
    for sample in found.samples:
        assert sample.source == name and sample.answer in sample.choices


def test_own_questions_by_letter_index_or_text(real_like: Config, tmp_path: Path) -> None:
    folder = tmp_path / "bench/own"
    genuine.save(folder / "p/1.png")
    rows: list[dict[str, object]] = [
        {"question": "Q", "image": "p/1.png", "choices": ["x", "y"], "answer": answer} for answer in ("B", 1, "y", "z")
    ]
    rows.append({"question": "How many?", "images": ["p/1.png"], "answer": 3})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = base.load("own", real_like)
    assert [s.answer for s in found.samples] == ["y", "y", "y", "3"] and sum(found.dropped.values()) == 1


def test_missing_images_are_named(real_like: Config) -> None:
    (Path(real_like.data.root) / "bench/MMVP/MMVP Images/2.jpg").unlink()
    with pytest.raises(
        UserError, match=r"1 of 4 images are missing .*2\.jpg.*`make data-download PRESET=paper-7b`.*MMVP/MMVP"
    ):
        base.load("mmvp", real_like)


def test_published_counts_are_checked(real_like: Config) -> None:
    strict = load("paper-7b", "fgrpo", [f"data.root={real_like.data.root}"])
    with pytest.raises(UserError, match="2 trials instead of the published 1438; left out: 1 ×"):
        base.load("cvb_2d", strict)
    assert strict.eval.counts is not None and sum(strict.eval.counts[name] for name in strict.eval.benchmarks) == 6586
    assert strict.eval.counts == PUBLISHED


PUBLISHED = {
    "cvb_2d": 1438, "cvb_3d": 1200, "mindcube": 1050, "mmvp": 300, "omnispatial": 1533, "realworldqa": 765, "sat_real": 300,
    "blink": 642, "mmsi_bench": 1000, "treebench": 405,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_count_is_asked_for(name: str, real_like: Config) -> None:
    """And another copy of the data (MindCube's of 1040 rows) can be accepted by saying so."""
    here = f"data.root={real_like.data.root}"
    with pytest.raises(
        UserError, match=f"instead of the published {PUBLISHED[name]}.*make data-download .* into"
    ) as found:
        base.load(name, load("paper-7b", "fgrpo", [here]))
    (accept,) = [word for word in str(found.value).split() if word.startswith(f"eval.counts.{name}=")]
    assert base.load(name, load("paper-7b", "fgrpo", [here, accept])).samples


def test_images_as_structs_and_as_bytes(real_like: Config) -> None:
    """`datasets` writes {"bytes", "path"}; SAT's own files hold bytes."""
    folder = Path(real_like.data.root) / "bench/SAT"
    row = {"question": "Q?", "answers": ["x", "y"], "correct_answer": "x", "question_type": "t"}
    genuine.parquet(folder / "SAT_test.parquet", [{**row, "image_bytes": [{"bytes": genuine.png(1), "path": None}]}])
    assert len(base.load("sat_real", real_like).samples) == 2
    genuine.parquet(
        folder / "SAT_test.parquet", [{**row, "image_bytes": [b""]}, {**row, "image_bytes": [genuine.png(1)]}]
    )
    found = base.load("sat_real", real_like)
    assert len(found.samples) == 2 and found.dropped == {"the row holds no image": 1}


def test_accuracy_is_the_plain_mean_over_questions(world: Config) -> None:
    """Not the mean of CV-Bench's per-source means, which other harnesses print."""
    records = [
        EvalRecord(str(n), "cvb_2d", "m", str(n), {"accuracy": Score.of(float(n == 0))},
                   {"kind": "greedy", "group": str(n), "finish": "stop", "answer_from": "rules", "source": source})
        for n, source in enumerate(["ADE20K", "COCO", "COCO", "COCO"])
    ]  # fmt: skip
    cells = summary.summarise(records, (), world.eval)["greedy"]["benchmarks"]["cvb_2d"]
    assert cells["accuracy"]["value"] == 0.25


def test_missing_folder_file_column_and_name(real_like: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'mmvp'"):
        base.load("mmpv", real_like)
    elsewhere = load("paper-7b", "fgrpo", [f"data.root={tmp_path / 'nothing'}"])
    with pytest.raises(
        UserError, match="is missing; `make data-download PRESET=paper-7b` downloads it, or put qizekun/OmniSpatial"
    ):
        base.load("omnispatial", elsewhere)
    path = tmp_path / "bench/SAT/SAT_test.parquet"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        base.load("sat_real", real_like)


def test_spread_keeps_groups_together(real_like: Config) -> None:
    samples = base.load("mmvp", real_like).samples
    assert len({base.group_of(s) for s in base.spread(samples, 2)}) == 1
    assert base.spread(samples, None) == samples
