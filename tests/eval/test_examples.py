"""The boxes of an example are drawn in the pixels that the model's own processor gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from eval import examples, models
from eval.results import SCORING, Result
from fgrpo.config import load
from fgrpo.policy import backbone
from fgrpo.types import Box, EvalRecord, Rollout, Sample, Score


@pytest.mark.parametrize(("most", "seen"), [(112 * 112, 112), (56 * 56, 56)])
def test_true_and_written_boxes_of_the_model_frame(most: int, seen: int, tmp_path: Path) -> None:
    """A box of 28 pixels is a quarter of an image that the model sees with 112, and half of one that it sees with 56."""
    (tmp_path / SCORING).write_text(json.dumps({"judges": {"pixels": [784, most, 28]}}))
    Image.new("RGB", (112, 112)).save(tmp_path / "x.png")
    sample = Sample("mmvp/test/0", (str(tmp_path / "x.png"),), "Q?", ("a", "b"), "a", (Box(0, 0, 28, 28, "model"),))
    record = EvalRecord("r", "mmvp", "fgrpo", sample.id, {"accuracy": Score.of(1.0)}, {"kind": "greedy"})
    rollout = Rollout("r", sample.id, "<think>At <bbox>[0,0,28,28]</bbox>.</think><answer>a</answer>")
    column = (Result("fgrpo", "FGRPO", tmp_path, {}), models.load("fgrpo"), record, rollout)
    built = examples.build("r", sample, [column], "MMVP")
    side = 28 * 112 / seen
    assert [(s.width, s.height) for s in built.truth] == [(side, side)]
    assert [(s.width, s.height) for s in built.columns[0].shapes] == [(side, side)]


def test_downscaled_images_are_those_of_the_models_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` gets the family of the model's weights below the runs folder of the evaluation."""
    config = load("mini")
    run = tmp_path / "runs" / "mini"
    (run / "eval" / "fgrpo").mkdir(parents=True)
    (run / "eval" / "fgrpo" / SCORING).write_text(json.dumps({"judges": {"pixels": [784, 12544, 28]}}))
    asked: list[str] = []
    monkeypatch.setattr(examples, "assumed_family", lambda path: asked.append(path) or backbone.default())
    sample = Sample("mmvp/test/0", (), "Q?", ("a", "b"), "a")
    record = EvalRecord("r", "mmvp", "fgrpo", sample.id, {}, {"kind": "greedy"})
    column = (Result("fgrpo", "FGRPO", run / "eval" / "fgrpo", {}), models.load("fgrpo"), record, Rollout("r", "", ""))
    examples.build("r", sample, [column], "MMVP", config)
    assert asked == [str(run / "rl-fgrpo" / "final")]


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("[REASON]It is red.[/REASON]<final>a</final>", "It is red.", "a"),
        ("[REASON]It is red.[/REASON]a", "It is red.", "a"),
        ("[REASON]It is red.[/REASON]", "It is red.", "no answer"),
    ],
)
def test_an_example_is_read_in_the_models_own_tags(text: str, think: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / SCORING).write_text(json.dumps({"judges": {"pixels": [784, 12544, 28]}}))
    spec = models.ModelSpec(title="M", path="m", prompt="think", think_tags=("[REASON]",), answer_tags=("<final>",))
    sample = Sample("mmvp/test/0", (), "Q?", ("a", "b"), "a")
    record = EvalRecord("r", "mmvp", "m", sample.id, {"accuracy": Score.of(1.0)}, {"kind": "greedy"})
    column = (Result("m", "M", tmp_path, {}), spec, record, Rollout("r", sample.id, text))
    (shown,) = examples.build("r", sample, [column], "MMVP").columns
    assert (["".join(piece.text for piece in line.pieces) for line in shown.lines], shown.answer) == ([think], answer)
