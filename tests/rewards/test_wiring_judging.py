"""Hand-overs between rewards and judges: items -> prompts, and attributes of a reward -> what evaluation reads of it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fgrpo.errors import UserError
from fgrpo.response import parse
from fgrpo.types import Sample, Score, Verdict
from judges.base import JudgeSet
from judges.task import JudgeTask
from rewards import base
from rewards.base import Report, RewardContext, RewardItem, judge_task_of, judge_tasks, load, report_of
from rewards.consistency import CONSISTENCY_LABELS, CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_LABELS, GROUNDING_TASK, GroundingItem

ITEM = ConsistencyItem("c7", "Where is the car?", ("left", "right"), "It is at <bbox>[1,2,3,4]</bbox>, left.", "Left")
SENTENCES = GroundingItem(
    "g7",
    ("a.png", "b.png"),
    "Where is the dog?",
    ("A car is there.", "It is at <box>[10,20,70,80]</box>.", "A dog is left."),
    (
        ("Let me see.",),
        ("Let me see.", "A car is there."),
        ("Let me see.", "A car is there.", "It is at <box>[10,20,70,80]</box>.", "So."),
    ),
    ((100, 200), (100, 200)),
    "box",
    "model",
)


def after(text: str, label: str) -> str:
    """The rest of the line of the prompt that begins with `label`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{label}: ")]
    return line.removeprefix(f"{label}: ")


def listed(text: str) -> list[tuple[str, str]]:
    """(mark, sentence) of each line of the prompt's list."""
    return [(mark, json.loads(words)) for mark, words in re.findall(r'^(-|\d+\.) (".*")$', text, re.MULTILINE)]


def test_the_consistency_prompt_has_each_part_under_its_own_heading() -> None:
    call = CONSISTENCY_TASK.call(ITEM)
    assert json.loads(after(call.text, "question")) == "Where is the car?"
    assert json.loads(after(call.text, "options")) == {"A": "left", "B": "right"}
    assert json.loads(after(call.text, "reasoning")) == "It is at [1,2,3,4], left."  # tags of boxes are removed
    assert json.loads(after(call.text, "answer")) == "Left"
    assert (call.role, call.images, call.size) == ("consistency", (), 1)
    assert call.schema is not None and call.schema["properties"]["label"]["enum"] == list(CONSISTENCY_LABELS)
    free = CONSISTENCY_TASK.call(dataclasses.replace(ITEM, choices=()))
    assert after(free.text, "options") == "(none)"
    assert call.parse('{"why": "it says left", "label": "INCONSISTENT"}') == (("INCONSISTENT", "it says left"),)


def test_each_field_of_the_consistency_item_reaches_the_prompt() -> None:
    plain = CONSISTENCY_TASK.call(ITEM).text
    for change in ({"question": "How many?"}, {"choices": ("up",)}, {"think": "It is right."}, {"answer": "Right"}):
        assert CONSISTENCY_TASK.call(dataclasses.replace(ITEM, **change)).text != plain, change  # type: ignore[arg-type]
    assert CONSISTENCY_TASK.call(dataclasses.replace(ITEM, id="other")).text == plain


def test_the_grounding_prompt_lists_the_whole_trace_and_numbers_what_is_judged() -> None:
    call = GROUNDING_TASK.call(SENTENCES, "model")
    assert listed(call.text) == [
        ("-", "Let me see."),
        ("1.", "A car is there."),
        ("2.", "It is at [10,20,70,80]."),
        ("-", "So."),
        ("3.", "A dog is left."),
    ]
    assert json.loads(after(call.text, "question")) == "Where is the dog?"
    assert "resized to 100 x 200" in call.text
    assert (call.role, call.images, call.size) == ("grounding", ("a.png", "b.png"), 3)
    reply = json.dumps({str(n): {"why": f"w{n}", "label": label} for n, label in enumerate(GROUNDING_LABELS, start=1)})
    assert call.parse(reply) == (("CORRECT", "w1"), ("INCORRECT", "w2"), ("SKIP", "w3"))


@pytest.mark.parametrize(("frame", "box"), [("thousand", "[100,100,700,400]"), ("unit", "[0.100,0.100,0.700,0.400]")])
def test_the_grounding_prompt_writes_boxes_in_the_judges_frame(frame: Any, box: str) -> None:
    text = GROUNDING_TASK.call(SENTENCES, frame).text
    assert dict(listed(text))["2."] == f"It is at {box}."
    assert f"from 0 to {'1000' if frame == 'thousand' else '1'} across" in text
    unknown = GROUNDING_TASK.call(dataclasses.replace(SENTENCES, image_sizes=()), frame).text
    assert dict(listed(unknown))["2."] == "It is at [10,20,70,80]."  # no conversion without the image's size
    other_tag = GROUNDING_TASK.call(dataclasses.replace(SENTENCES, box_tag="bbox"), frame).text
    assert dict(listed(other_tag))["2."] == f"It is at {box}."  # whatever tag the model wrote
    own = GROUNDING_TASK.call(dataclasses.replace(SENTENCES, box_frame=frame), frame).text
    assert dict(listed(own))["2."] == "It is at [10,20,70,80]."  # already in the judge's frame


def test_a_grounding_item_whose_contexts_do_not_fit_is_refused() -> None:
    broken = [
        dataclasses.replace(SENTENCES, contexts=(("Another.",), *SENTENCES.contexts[1:])),
        dataclasses.replace(SENTENCES, contexts=((), *SENTENCES.contexts[1:])),
        dataclasses.replace(SENTENCES, sentences=("A bus is there.", *SENTENCES.sentences[1:])),
        dataclasses.replace(SENTENCES, contexts=(SENTENCES.contexts[1], *SENTENCES.contexts[1:])),
    ]
    for item in broken:
        with pytest.raises(ValueError, match="g7"):
            GROUNDING_TASK.call(item)


def test_a_grounding_item_without_sentences_lists_nothing() -> None:
    call = GROUNDING_TASK.call(dataclasses.replace(SENTENCES, sentences=(), contexts=()))
    assert (listed(call.text), call.size) == ([], 0)


def test_a_grounding_item_splits_into_one_item_per_sentence() -> None:
    assert GROUNDING_TASK.split is not None
    parts = GROUNDING_TASK.split(SENTENCES)
    assert [(p.sentences, p.contexts) for p in parts] == [
        ((sentence,), (context,)) for sentence, context in zip(SENTENCES.sentences, SENTENCES.contexts, strict=True)
    ]
    assert {(p.id, p.images, p.question, p.image_sizes, p.box_tag, p.box_frame) for p in parts} == {
        ("g7", SENTENCES.images, SENTENCES.question, SENTENCES.image_sizes, "box", "model")
    }
    assert listed(GROUNDING_TASK.call(parts[1], "model").text)[-1] == ("1.", "It is at [10,20,70,80].")
    assert CONSISTENCY_TASK.split is None


def test_recordings_name_the_kind_of_item() -> None:
    """Recorded verdicts are found by these names, so another name loses every recording."""
    assert [(t.name, t.record_kind, t.prompt.name) for t in (CONSISTENCY_TASK, GROUNDING_TASK)] == [
        ("consistency", "ConsistencyItem", "consistency.txt"),
        ("grounding", "GroundingItem", "grounding.txt"),
    ]


class Own:
    """A reward with the required attributes alone."""

    name = "my_own_reward"

    async def __call__(self, items: Any, context: Any) -> list[Score]:
        return [Score.of(1.0) for _ in items]


def test_a_reward_without_a_report_gets_a_default_under_its_own_name() -> None:
    report = report_of(Own())
    assert report is not None
    assert dataclasses.asdict(report) == {
        "metric": "my_own_reward",
        "title": "my own reward",
        "higher_is_better": True,
        "inverted": False,
        "pooled": False,
        "binary": False,
        "symbol": "",
        "colour": None,
        "needs_boxes": False,
        "order": 100,
        "definition": "",
    }
    own = Own()
    own.report = None  # type: ignore[attr-defined]
    assert report_of(own) is None
    own.report = Report("m", "t")  # type: ignore[attr-defined]
    assert report_of(own) == Report("m", "t")


def test_a_rewards_question_is_its_own_and_others_are_left_out() -> None:
    assert judge_task_of(Own()) is None
    own, task = Own(), JudgeTask("t", Path("t.txt"), ("A",), lambda item, frame: {})
    own.judge_task = task  # type: ignore[attr-defined]
    assert judge_task_of(own) is task
    assert judge_tasks() == [CONSISTENCY_TASK, GROUNDING_TASK]
    assert judge_tasks(["spatial_grounding", "semantic_grounding", "task", "consistency"]) == [
        GROUNDING_TASK,
        CONSISTENCY_TASK,
    ]
    assert judge_tasks(["spatial_grounding"]) == judge_tasks([]) == []


def test_a_name_that_is_no_reward_is_refused_with_the_names_that_are() -> None:
    with pytest.raises(UserError, match=r"unknown reward 'consistencyy'.*consistency"):
        load("consistencyy")
    with pytest.raises(UserError) as error:
        load("sentences")
    message = str(error.value)
    assert re.search(r"sentences\.py defines no REWARD, so it is no reward;", message)
    assert message.endswith(", ".join(base.names()))
    assert base.reported_names() == ["consistency", "semantic_grounding", "spatial_grounding"]
    assert {*base.reported_names(), "task"} <= set(base.names())
    for name in base.names():
        assert load(name) is importlib.import_module(f"rewards.{name}").REWARD


def scores_of(name: str, think: str, judges: JudgeSet, answer: str = "left") -> Score:
    sample = Sample("sat/train/0", (), "Where is the car?", ("left", "right"), "left")
    item = RewardItem("r", sample, parse(f"<think>{think}</think><answer>{answer}</answer>"))
    (score,) = asyncio.run(load(name)([item], RewardContext(judges)))
    return score


SCRIPTS = {
    "CJK": "红圆左边",
    "Hiragana": "あかいま",
    "Katakana": "アカイマ",
    "Hangul": "빨간원왼",
    "Thai": "กขคง",
    "Lao": "ກຂຄງ",
    "Khmer": "កខគឃ",
    "Myanmar": "ကခဂဃ",
    "Tibetan": "ཀཁགང",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_without_blanks_are_counted_by_letters(script: str, scripted: Any, no_judge: JudgeSet) -> None:
    letters = SCRIPTS[script]
    judged = scores_of("consistency", letters, JudgeSet(scripted(lambda _: Verdict("CONSISTENT"))))
    assert judged.detail["cause"] == "judge", script
    assert scores_of("consistency", letters[:3], no_judge).detail["cause"] == "no_trace", script


def test_stock_openers_count_as_whole_phrases_only(scripted: Any, no_judge: JudgeSet) -> None:
    yes = JudgeSet(scripted(lambda _: Verdict("CONSISTENT")))
    for nothing in ("LET'S THINK STEP BY STEP. Solution:", "Thinking process. The reasoning:", "As an AI model:"):
        assert scores_of("consistency", nothing, no_judge).detail["cause"] == "no_trace", nothing
    for something in ("Solutions moved left", "Resolution moved left"):  # words that only contain an opener
        assert scores_of("consistency", something, yes).detail["cause"] == "judge", something


@pytest.mark.parametrize(("answer", "cause"), [("", "no_answer"), ("left", "judge")])
def test_the_cause_of_a_zero_is_named_in_its_reason(answer: str, cause: str, scripted: Any) -> None:
    judges = JudgeSet(scripted(lambda _: Verdict("INCONSISTENT", "the trace says right")))
    score = scores_of("consistency", "The car is on the right side.", judges, answer)
    assert (score.value, score.detail["cause"]) == (0.0, cause)
    assert ("no single closed answer" in score.reason) == (cause == "no_answer")
    assert (score.reason == "the trace says right") == (cause == "judge")


def test_the_same_box_a_second_time_is_no_new_evidence(scripted: Any) -> None:
    """Whatever stands between: another box is new evidence for other claims, not for this box."""
    yes = JudgeSet(scripted(lambda item: tuple(Verdict("CORRECT", "seen") for _ in item.sentences)))
    car, bus = "The car is at <bbox>[1,2,30,40]</bbox>.", "The bus is at <bbox>[50,60,70,80]</bbox>."
    score = scores_of("semantic_grounding", "\n".join((car, bus, car)), yes)
    shown = score.detail["sentences"]
    assert [s["label"] for s in shown] == ["CORRECT", "CORRECT", "INCORRECT"]
    assert [s.get("by_rule", False) for s in shown] == [False, False, True]
    assert [s["reason"] == "seen" for s in shown] == [True, True, False]
    assert score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["consistency", "semantic_grounding"])
@pytest.mark.parametrize("count", [1, 3])
def test_judges_that_lose_or_add_verdicts_stop_the_batch(name: str, count: int, scripted: Any) -> None:
    """A missing verdict must not shift the others to another rollout."""

    class Wrong(scripted):  # type: ignore[misc]
        async def answer(self, task: Any, items: Any) -> Any:
            return [(Verdict("CORRECT"),)] * count

    sample = Sample("sat/train/0", (), "Where is the car?", ("left", "right"), "left")
    response = parse("<think>The car is on the left side.</think><answer>left</answer>")
    items = [RewardItem(str(n), sample, response) for n in range(2)]
    with pytest.raises(ValueError, match="zip"):
        asyncio.run(load(name)(items, RewardContext(JudgeSet(Wrong(None)))))


def test_all_skipped_is_not_applicable_with_its_sentences(scripted: Any) -> None:
    skip = JudgeSet(scripted(lambda item: tuple(Verdict("SKIP", "plan") for _ in item.sentences)))
    score = scores_of("semantic_grounding", "A red car.\nA blue bus.", skip)
    assert (score.state, score.value) == ("not_applicable", None)
    assert [(s["text"], s["label"], s["reason"]) for s in score.detail["sentences"]] == [
        ("A red car.", "SKIP", "plan"),
        ("A blue bus.", "SKIP", "plan"),
    ]
