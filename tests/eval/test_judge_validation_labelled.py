"""Labelled sets on small files in their genuine formats, traps included, and the command over a judge behind an endpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.judge_validation import run
from eval.judge_validation.labelled import base
from eval.judge_validation.labelled.base import Labelled, Loaded, load
from fgrpo.errors import UserError
from rewards.semantic_grounding import GroundingItem
from tests.judges.conftest import in_a_thread


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56)).save(path)


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))  # no newline at the end, as such files often have it


VSR = {
    "image": "000000017697.jpg",
    "image_link": "http://images.cocodataset.org/train2017/000000017697.jpg",
    "caption": "The car is behind the suitcase.",
    "label": 1,
    "relation": "behind",
    "subj": "car",
    "obj": "suitcase",
    "annotator_id": 2,
    "vote_true_validator_id": "[18, 2]",
    "vote_false_validator_id": "[1]",
}


@pytest.fixture
def vsr(tmp_path: Path) -> Path:
    folder = tmp_path / "vsr"
    picture(folder / "train2017" / "000000017697.jpg")
    picture(folder / "val2017" / "000000001675.jpg")
    rows = [
        VSR,
        {**VSR, "image": "000000001675.jpg", "caption": "The cat is on the keyboard.", "label": 0, "relation": "on"},
        {**VSR, "image": "000000000000.jpg"},
        {**VSR, "label": 2},
        {**VSR, "label": True},
        {**VSR, "caption": " "},
        {key: value for key, value in VSR.items() if key != "image"},
    ]
    lines(folder / "test.jsonl", rows)
    return folder


def grounding(one: Labelled) -> GroundingItem:
    assert isinstance(one.item, GroundingItem)
    return one.item


def test_vsr(vsr: Path) -> None:
    found = load("vsr", vsr)
    assert [(grounding(x).sentences, grounding(x).contexts, x.truth, x.kinds) for x in found.items] == [
        (("The car is behind the suitcase.",), ((),), ("CORRECT",), ("behind",)),
        (("The cat is on the keyboard.",), ((),), ("INCORRECT",), ("on",)),
    ]
    assert all(Path(p).is_file() for x in found.items for p in grounding(x).images)
    assert found.dropped == {
        "the image is missing": 1,
        "a label other than 0 and 1": 2,
        "no caption": 1,
        "no image is named": 1,
    }
    assert len(load("vsr", vsr / "test.jsonl").items) == 2  # the file itself may be named, too


STEPS = ["Count the cubes.", "There are 3 red cubes.", "There are 2 blue cubes.", "So there are 6."]
VISUAL = {
    "image": ["images/MathVision/7.png"],
    "question": "How many cubes are there?",
    "answer": "5",
    "response": {"steps": STEPS, "process_correctness": [0, 1, 1, -1]},
    "policy_model": "InternVL2.5-8B",
    "data_source": "MathVision",
}


def test_visual_process_bench(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "MathVision" / "7.png")
    two = {**VISUAL, "image": ["images/MathVision/7.png", "images/missing.png"]}
    rows = [
        VISUAL,
        {**VISUAL, "image": "MathVision/7.png", "data_source": "MMMU"},  # a bare string, below images/
        two,
        {**VISUAL, "response": {"steps": STEPS, "process_correctness": [1]}},
        {**VISUAL, "response": "one text"},
        {**VISUAL, "response": {"steps": ["A cube.", " ", "Red."], "process_correctness": [1, 1, 7]}},
        {**VISUAL, "response": {"steps": [""], "process_correctness": [1]}},
    ]
    lines(tmp_path / "test.jsonl", rows)
    found = load("visual_process_bench", tmp_path)
    first, second, third = found.items
    assert first.truth == ("SKIP", "CORRECT", "CORRECT", "INCORRECT") and set(first.kinds) == {"MathVision"}
    item = grounding(first)
    assert item.sentences == tuple(STEPS) and item.contexts == tuple(tuple(STEPS[:i]) for i in range(4))
    assert item.question == "How many cubes are there?" and item.images == grounding(second).images
    assert set(second.kinds) == {"MMMU"}
    assert (grounding(third).sentences, third.truth) == (("A cube.",), ("CORRECT",))
    assert found.dropped == {
        "the image is missing": 1,
        "an answer whose numbers of steps and labels differ": 1,
        "an answer without steps": 1,
        "an empty step": 2,
        "a step with a label other than 1, 0, -1": 1,
        "an answer without a usable step": 1,
    }


RESPONSE = "A wooden bench stands on a boat. It has stripes. Two people sit there. It is a peaceful scene."


def span(text: str, label: str) -> dict[str, Any]:
    start = RESPONSE.index(text)
    return {"start": start, "end": start + len(text), "text": text, "label": label}


HAL = {
    "question": "<image>\nCompose a comprehensive description of the image.",
    "response": RESPONSE,
    "image": "COCO_val2014_000000292123.jpg",
    "annotations": [
        span("Two people sit there.", "INACCURATE"),  # out of order
        span("A wooden bench stands on a boat.", "ACCURATE"),
        span("It has stripes.", "UNSURE"),
        span("It is a peaceful scene.", "ANALYSIS"),
    ],
}


def test_m_haldetect(tmp_path: Path) -> None:
    picture(tmp_path / "val2014" / "COCO_val2014_000000292123.jpg")
    broken = [
        {**span("It has stripes.", "ACCURATE"), "start": 3},
        {"label": "ACCURATE"},
        span("It has stripes.", "FINE"),
    ]
    rows = [HAL, {**HAL, "annotations": broken}, {**HAL, "image": "COCO_val2014_000000000001.jpg"}, "text"]
    (tmp_path / "val_raw.json").write_text(json.dumps(rows))
    found = load("m_haldetect", tmp_path)
    (one,) = found.items
    item = grounding(one)
    assert item.question == "Compose a comprehensive description of the image."
    assert item.sentences == ("A wooden bench stands on a boat.", "Two people sit there.", "It is a peaceful scene.")
    assert one.truth == ("CORRECT", "INCORRECT", "SKIP") and one.kinds == ("ACCURATE", "INACCURATE", "ANALYSIS")
    assert item.contexts[1] == ("A wooden bench stands on a boat.", "It has stripes.")  # UNSURE is context
    assert found.dropped == {
        "a span marked UNSURE": 1,
        "a span whose text is not at its offsets": 1,
        "a span without start, end, text or label": 1,
        "a span with an unknown label": 1,
        "a description without a usable span": 1,
        "the image is missing": 1,
        "a row that is no object": 1,
    }


def test_every_file_is_a_set(tmp_path: Path) -> None:
    assert set(base.names()) >= {"m_haldetect", "visual_process_bench", "vsr"}
    for name in base.names():
        with pytest.raises(UserError, match=r"is missing; it is part of .*\("):  # which file, and where it is had
            load(name, tmp_path)


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", [VSR, VSR])
    with pytest.raises(UserError, match=r"the image is missing: 2\); missing images: 000000017697\.jpg"):
        load("vsr", tmp_path)
    (tmp_path / "test.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        load("vsr", tmp_path)
    for text, says in (("{", "is not JSON"), ("{}", "not a list of descriptions")):
        (tmp_path / "val_raw.json").write_text(text)
        with pytest.raises(UserError, match=says):
            load("m_haldetect", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "test.jsonl").write_text("")
    with pytest.raises(UserError, match="it is empty"):
        load("visual_process_bench", tmp_path / "empty")


def test_an_answer_key_that_does_not_fit_is_refused() -> None:
    item = GroundingItem("x", (), "", ("a", "b"), ((), ("a",)))
    with pytest.raises(ValueError, match="2 verdicts, 1 labels"):
        Labelled(item, ("CORRECT",), ("k", "k"))
    assert Loaded().items == []


@pytest.fixture
def yes_sayer() -> Iterator[str]:
    """The address of a judge behind an endpoint, in a thread of its own, that calls every sentence CORRECT."""

    def behave(number: int, body: dict[str, Any]) -> str:
        schema = body["response_format"]["json_schema"]["schema"]
        return json.dumps({key: {"why": "seen", "label": "CORRECT"} for key in schema["properties"]})

    with in_a_thread(behave) as server:
        yield server.url


def test_the_judge_that_a_user_pays_for(
    vsr: Path, yes_sayer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command over HTTP: a judge that always says yes has half of the captions right and a kappa of 0."""
    words = ["--set", "judges.evaluation.backend=openai", f"judges.evaluation.endpoints=[{yes_sayer}]"]
    words += ["judges.evaluation.model=served-model", "judges.evaluation.cache=null", "eval.bootstrap_samples=50"]
    more = ["--labelled", f"vsr:{vsr}", "--judge", "evaluation", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["validation", "--preset", "mini", *words, *more])
    run.main()
    assert "kappa 0.000" in capsys.readouterr().out
    (section,) = json.loads((tmp_path / "out" / "judge_validation.json").read_text())["sections"]
    (agreement,) = section["agreements"]
    assert (agreement["agreement"], agreement["kappa"]) == (0.5, 0.0)
    assert agreement["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert {r["kind"]: r["wrong"] for r in section["errors"]["semantic_grounding"]} == {"behind": 0, "on": 1}
    assert section["dropped"]["the image is missing"] == 1 and section["model"] == "served-model"
    assert section["prompts"]["grounding"]
