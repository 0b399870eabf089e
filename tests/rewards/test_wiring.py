"""Hand-overs of the rewards: each field of item and context reaches its place, and each verdict its own rollout."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgrpo.response import parse
from fgrpo.types import Box, Sample, Score, Verdict
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load, names

LEFT = Sample("sat/train/0", (), "Where is the car?", ("left", "right"), "left")
SAYS_LEFT = "<think>The car is on the left side.</think><answer>left</answer>"


def score(name: str, items: list[RewardItem], judges: JudgeSet, **options: Any) -> list[Score]:
    return asyncio.run(load(name)(items, RewardContext(judges, **options)))


def item(text: str = SAYS_LEFT, rollout_id: str = "r", **changes: Any) -> RewardItem:
    tag = changes.pop("tag", "bbox")
    frame = changes.pop("frame", "model")
    return RewardItem(rollout_id, dataclasses.replace(LEFT, **changes), parse(text, box_tag=tag, frame=frame))


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Images of 200 x 100 and 56 x 280 pixels; within 12544 pixels the model sees 140 x 56 and 28 x 224."""
    paths = []
    for n, size in enumerate([(200, 100), (56, 280)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
        paths.append(str(tmp_path / f"{n}.png"))
    return paths


def test_the_consistency_judge_reads_question_choices_trace_and_answer(scripted: Any) -> None:
    judge = scripted(lambda _: Verdict("CONSISTENT", "it follows", judge="tester"))
    judges = JudgeSet(judge)
    (got,) = score("consistency", [item()], judges)
    (asked,) = judge.items
    assert dataclasses.asdict(asked) == {
        "id": "r",
        "question": "Where is the car?",
        "choices": ("left", "right"),
        "think": "The car is on the left side.",
        "answer": "left",
    }
    assert judge.tasks == ["consistency"]
    assert (got.value, got.reason) == (1.0, "it follows")
    assert (got.detail["cause"], got.detail["judge"]) == ("judge", "tester")


def test_the_grounding_judge_reads_sentences_contexts_images_and_frame(scripted: Any, images: list[str]) -> None:
    judge = scripted(lambda asked: tuple(Verdict("CORRECT", judge="tester") for _ in asked.sentences))
    judges = JudgeSet(judge)
    text = "<think>Let me think.\nA red car.\nA blue bus.</think><answer>left</answer>"
    options = {"min_pixels": 784, "max_pixels": 12544, "box_tag": "box", "box_frame": "thousand"}
    (got,) = score("semantic_grounding", [item(text, images=tuple(images))], judges, **options)
    (asked,) = judge.items
    assert dataclasses.asdict(asked) == {
        "id": "r",
        "images": tuple(images),
        "question": "Where is the car?",
        "sentences": ("A red car.", "A blue bus."),
        "contexts": (("Let me think.",), ("Let me think.", "A red car.")),
        "image_sizes": ((140, 56), (28, 224)),
        "box_tag": "box",
        "box_frame": "thousand",
    }
    assert got.detail["judge"] == "tester" and judge.tasks == ["grounding"]
    score("semantic_grounding", [item(text, images=tuple(images))], judges, **{**options, "box_frame": "original"})
    assert judge.items[1].image_sizes == ((200, 100), (56, 280))  # boxes in the file's own pixels
    score("semantic_grounding", [item(text, images=("gone.png",))], judges, **options)
    assert judge.items[2].image_sizes == ()


def test_defaults_are_those_of_the_policy() -> None:
    """Scripts that build a context of their own get the paper's: every answer, every box, <bbox> in model pixels."""
    context = RewardContext(judges=None)  # type: ignore[arg-type]
    assert (context.mask, context.boxes_from, context.box_normaliser) == ("all", None, "max")
    assert (context.box_tag, context.box_frame) == ("bbox", "model")
    bounds = (context.min_pixels, context.max_pixels, context.patch_factor)
    assert bounds == (4 * 28 * 28, 16384 * 28 * 28, 28)


def test_verdicts_go_back_to_the_rollout_and_sentence_that_they_judge(scripted: Any) -> None:
    """Rollouts that a rule decides are between those that a judge decides."""
    text = "<think>A red car.\nLet me think.\nA blue bus.\nA green dog.</think><answer>left</answer>"
    nothing = "<think>Let me think.</think><answer>left</answer>"
    items = [item(nothing, "a"), item(text, "b"), item(nothing, "c"), item(text, "d")]
    labels = {"b": ("CORRECT", "INCORRECT", "SKIP"), "d": ("INCORRECT", "INCORRECT", "CORRECT")}
    judge = scripted(lambda asked: tuple(Verdict(label, f"{asked.id}: {label}") for label in labels[asked.id]))
    scores = score("semantic_grounding", items, JudgeSet(judge))
    assert [s.value for s in scores] == [None, pytest.approx(1 / 2), None, pytest.approx(1 / 3)]
    shown = scores[1].detail["sentences"]
    assert [s["text"] for s in shown] == ["A red car.", "Let me think.", "A blue bus.", "A green dog."]
    assert [s["visual"] for s in shown] == [True, False, True, True]
    assert [s["label"] for s in shown] == ["CORRECT", None, "INCORRECT", "SKIP"]
    assert [s["reason"] for s in shown] == ["b: CORRECT", "", "b: INCORRECT", "b: SKIP"]

    verdicts = {"b": "CONSISTENT", "d": "INCONSISTENT"}
    judge = scripted(lambda asked: Verdict(verdicts[asked.id]))
    texts = {
        "a": "<think>left</think><answer>left</answer>",
        "b": SAYS_LEFT,
        "c": "<answer>left</answer>",
        "d": SAYS_LEFT,
    }
    items = [item(words, name) for name, words in texts.items()]
    scores = score("consistency", items, JudgeSet(judge))
    assert [s.value for s in scores] == [0.0, 1.0, 0.0, 0.0]
    assert [s.detail["cause"] for s in scores] == ["no_trace", "judge", "no_trace", "judge"]


@pytest.mark.parametrize("name", ["consistency", "semantic_grounding"])
def test_the_reason_of_a_failed_judgement_is_kept(name: str, scripted: Any) -> None:
    failed = Verdict(None, "endpoint gone", failed=True)
    unusable = Verdict("MAYBE")
    for verdict, reason in ((failed, "endpoint gone"), (unusable, "unusable label 'MAYBE'")):
        judge = scripted(lambda asked, v=verdict: (v,) if name == "semantic_grounding" else v)
        judges = JudgeSet(judge)
        (got,) = score(name, [item()], judges)
        assert (got.state, got.reason) == ("failed", reason)


@pytest.mark.parametrize(("normaliser", "value"), [("max", 1 / 3), ("gt", 1 / 3), ("matched", 1.0)])
def test_the_context_chooses_the_divisor_of_equation_1(normaliser: str, value: float, no_judge: JudgeSet) -> None:
    """One exact box of three annotated ones; then three boxes for one annotated."""
    truth = (Box(0, 0, 10, 10), Box(200, 200, 210, 210), Box(400, 400, 410, 410))
    one = "<think><bbox>[0,0,10,10]</bbox></think><answer>left</answer>"
    (got,) = score("spatial_grounding", [item(one, boxes=truth)], no_judge, box_normaliser=normaliser)
    assert got.value == pytest.approx(value)
    three = "<think>" + "".join(f"<bbox>{list(box)}</bbox>" for box in truth) + "</think>"
    (got,) = score("spatial_grounding", [item(three, boxes=truth[:1])], no_judge, box_normaliser=normaliser)
    assert got.value == pytest.approx(1 / 3 if normaliser == "max" else 1.0)


def test_boxes_count_for_the_chosen_sources_only(no_judge: JudgeSet) -> None:
    text, truth = "<think><bbox>[0,0,10,10]</bbox></think>", (Box(0, 0, 10, 10),)
    items = [item(text, boxes=truth, id=f"{source}/train/0") for source in ("vgr", "sat", "treevgr")]
    scores = score("spatial_grounding", items, no_judge, boxes_from=("vgr", "treevgr"))
    assert [s.value for s in scores] == [1.0, None, 1.0]
    assert "sat" in scores[1].reason


def test_the_pixel_bounds_set_the_frame_of_predicted_boxes(no_judge: JudgeSet, images: list[str]) -> None:
    """The right half of the 200 x 100 image, as the model sees it: 140 x 56 pixels, 196 x 112 with wider bounds, 154 x 70
    with patches of 14 pixels."""
    truth = (Box(100, 0, 200, 100, "original"),)
    for bounds, box in (
        ((784, 12544, 28), [70, 0, 140, 56]),
        ((784, 50176, 28), [98, 0, 196, 112]),
        ((112896, 225792, 28), [238, 0, 476, 252]),
        ((784, 12544, 14), [77, 0, 154, 70]),
    ):
        text = f"<think><bbox>{box}</bbox></think>"
        limits = dict(zip(("min_pixels", "max_pixels", "patch_factor"), bounds, strict=True))
        (got,) = score("spatial_grounding", [item(text, images=tuple(images[:1]), boxes=truth)], no_judge, **limits)
        assert got.value == pytest.approx(1.0, abs=1e-6), (bounds, got.detail)
        assert got.detail["outside"] == 0


def test_an_annotated_box_is_measured_in_its_own_image(no_judge: JudgeSet, images: list[str]) -> None:
    """meta says which image each box is in; a predicted box is read in the frame of the model."""
    text = "<think><bbox>[0,0,70,56]</bbox><bbox>[0,0,14,224]</bbox></think>"
    truth = (Box(0, 0, 100, 100, "original"), Box(0, 0, 28, 280, "original"))
    bounds = {"min_pixels": 784, "max_pixels": 12544}
    for meta, gt in (
        ({"box_images": [0, 1]}, [[0, 0, 70, 56], [0, 0, 14, 224]]),
        ({"box_image": 1}, [[0, 0, 50, 80], [0, 0, 14, 224]]),
    ):
        (got,) = score(
            "spatial_grounding", [item(text, images=tuple(images), boxes=truth, meta=meta)], no_judge, **bounds
        )
        assert got.detail["gt"] == [pytest.approx(box) for box in gt]
        assert got.detail["pred"] == [[0, 0, 70, 56], [0, 0, 14, 224]]


def test_spatial_details_name_what_was_matched_and_what_was_dropped(no_judge: JudgeSet, images: list[str]) -> None:
    """Three valid boxes (one beyond the image) and two that are not; three annotated boxes, one of them not valid."""
    text = (
        "<think><bbox>[500,500,600,600]</bbox><bbox>[70,0,140,56]</bbox><bbox>[0,0,70,56]</bbox>"
        "<bbox>[1,2]</bbox><bbox>[9,9,1,1]</bbox></think>"
    )
    truth = (Box(0, 0, 70, 56), Box(5, 5, 5, 5), Box(70, 0, 140, 56))
    bounds = {"min_pixels": 784, "max_pixels": 12544}
    (got,) = score("spatial_grounding", [item(text, images=tuple(images[:1]), boxes=truth)], no_judge, **bounds)
    assert got.value == pytest.approx(2 / 3)
    assert got.detail["pred"] == [[500, 500, 600, 600], [70, 0, 140, 56], [0, 0, 70, 56]]
    assert got.detail["gt"] == [[0, 0, 70, 56], [70, 0, 140, 56]]
    assert got.detail["pairs"] == [[1, 1, pytest.approx(1.0)], [2, 0, pytest.approx(1.0)]]
    assert (got.detail["dropped"], got.detail["outside"], got.detail["gt_dropped"]) == (2, 1, 1)


def test_a_predicted_box_leaves_the_image_on_any_side(no_judge: JudgeSet, images: list[str]) -> None:
    truth, bounds = (Box(0, 0, 70, 56),), {"min_pixels": 784, "max_pixels": 12544}
    inside = "[-1,-1,141,57]"  # a pixel of slack on each side
    for box, outside in ((inside, 0), ("[-2,0,9,9]", 1), ("[0,-2,9,9]", 1), ("[0,0,142,9]", 1), ("[0,0,9,58]", 1)):
        (got,) = score(
            "spatial_grounding",
            [item(f"<think><bbox>{box}</bbox></think>", images=tuple(images[:1]), boxes=truth)],
            no_judge,
            **bounds,
        )
        assert got.detail["outside"] == outside, box


def test_rules_at_their_edges() -> None:
    from rewards.consistency import is_contentless
    from rewards.sentences import sentences
    from rewards.task import matches

    assert is_contentless("<bold> left </bold>") and not is_contentless("It is left")  # tags are no words
    assert is_contentless("在左边") and not is_contentless("球在左边")  # three letters of such a script, and four
    for minus in "-−–—":
        assert matches(f"{minus}5", "-5", ("5", "-5")) and not matches(f"{minus}5", "5", ("5", "-5"))
    split = sentences("The car is red. 2. The bus is blue.")  # the number of a list ends no sentence
    assert [s.text for s in split] == ["The car is red.", "2. The bus is blue."]


def test_a_reward_is_loaded_under_its_own_name() -> None:
    for name in names():
        assert type(load(name)).__module__ == f"rewards.{name}" and load(name).name == name
