"""Consistency and semantic grounding: masks, rules before the judge, three states of a score, and the oracle's truth."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.response import parse
from fgrpo.types import Box, Sample, Score, Verdict
from judges.base import JudgeSet, build, failed_verdict
from miniworld import questions as q
from miniworld.planted import CONTROLS, ERRORS, plant
from miniworld.render import render
from miniworld.truth import entry
from rewards.base import Report, Reward, RewardContext, RewardItem, judge_task_of, load, names, report_of
from rewards.consistency import is_contentless

SAMPLE = Sample("sat/train/0", ("missing.png",), "Is the car left or right?", ("left", "right"), "left")
GOOD = "<think>The car is on the left side.\nThe bus is red.</think><answer>left</answer>"
WRONG = "<think>The car is on the right side.</think><answer>right</answer>"
NO_ANSWER = "<think>The car is on the left side.</think>"
TWO_ANSWERS = GOOD + "<answer>right</answer>"
EMPTY_TRACE = "<think> </think><answer>left</answer>"


def items_of(*texts: str) -> list[RewardItem]:
    return [RewardItem(f"r{i}", SAMPLE, parse(text)) for i, text in enumerate(texts)]


def score(name: str, items: list[RewardItem], context: RewardContext) -> list[Score]:
    return asyncio.run(load(name)(items, context))


def test_every_file_is_a_reward() -> None:
    for name in names():
        reward: Reward = load(name)
        assert reward.name == name
    assert set(names()) >= {"task", "consistency", "semantic_grounding", "spatial_grounding"}
    assert not set(names()) & {"base", "sentences", "boxes_in_text", "sentence_rules"}, "a helper is no reward"
    with pytest.raises(UserError, match=r"sentence_rules\.py defines no REWARD, so it is no reward"):
        load("sentence_rules")
    with pytest.raises(UserError, match="did you mean 'consistency'"):
        load("consistancy")


@pytest.mark.parametrize("name", ["task", "consistency", "semantic_grounding", "spatial_grounding"])
def test_an_empty_batch(name: str, no_judge: JudgeSet) -> None:
    assert score(name, [], RewardContext(no_judge)) == []


def test_in_training_only_correct_answers_reach_the_judges(scripted: Any) -> None:
    judge = scripted(lambda item: Verdict("CONSISTENT"))
    context = RewardContext(JudgeSet(judge), mask="correct")
    scores = score("consistency", items_of(WRONG, GOOD, NO_ANSWER, TWO_ANSWERS, EMPTY_TRACE), context)
    assert [s.state for s in scores] == ["not_applicable", "scored", "not_applicable", "not_applicable", "scored"]
    assert [s.value for s in scores] == [None, 1.0, None, None, 0.0]
    assert [item.id for item in judge.items] == ["r1"]
    grounding = scripted(lambda item: (Verdict("CORRECT"), Verdict("INCORRECT")))
    context = RewardContext(JudgeSet(grounding), mask="correct")
    scores = score("semantic_grounding", items_of(WRONG, GOOD), context)
    assert [s.value for s in scores] == [None, 0.5]
    assert [item.id for item in grounding.items] == ["r1"]


def test_in_evaluation_all_answers_do_and_no_answer_is_inconsistent(scripted: Any) -> None:
    judge = scripted(lambda item: Verdict("INCONSISTENT" if item.answer == "right" else "CONSISTENT"))
    context = RewardContext(JudgeSet(judge), mask="all")
    scores = score("consistency", items_of(WRONG, GOOD, NO_ANSWER, TWO_ANSWERS, EMPTY_TRACE), context)
    assert [s.value for s in scores] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert [s.detail["cause"] for s in scores] == ["judge", "judge", "no_answer", "no_answer", "no_trace"]
    assert [item.id for item in judge.items] == ["r0", "r1"]


def test_a_judges_failure_is_a_failed_score_never_a_zero(scripted: Any) -> None:
    for bad in (failed_verdict("time-out"), Verdict("MAYBE"), Verdict(None)):
        sets = JudgeSet(scripted(lambda item, v=bad: v))
        (got,) = score("consistency", items_of(GOOD), RewardContext(sets))
        assert (got.state, got.value) == ("failed", None)
        sets = JudgeSet(scripted(lambda item, v=bad: (Verdict("CORRECT"), v)))
        (got,) = score("semantic_grounding", items_of(GOOD), RewardContext(sets))
        assert (got.state, got.value) == ("failed", None)


def test_skip_is_left_out_and_context_is_what_precedes(scripted: Any) -> None:
    labels = iter(["CORRECT", "SKIP", "INCORRECT", "CORRECT"])
    judge = scripted(lambda item: tuple(Verdict(next(labels)) for _ in item.sentences))
    text = "<think>A car. Let me see. A bus.\nA red tree. A dog.</think><answer>left</answer>"
    (got,) = score("semantic_grounding", items_of(text), RewardContext(JudgeSet(judge)))
    assert got.value == pytest.approx(2 / 3)
    (item,) = judge.items
    assert item.sentences == ("A car.", "A bus.", "A red tree.", "A dog.")
    assert item.contexts[1] == ("A car.", "Let me see.")
    assert [d["label"] for d in got.detail["sentences"]] == ["CORRECT", None, "SKIP", "INCORRECT", "CORRECT"]


def test_saying_it_again_earns_nothing(scripted: Any) -> None:
    """A judge that accepts repetition: a claim that was made before is incorrect all the same, whatever stands between."""
    yes = RewardContext(JudgeSet(scripted(lambda i: (Verdict("CORRECT"),) * len(i.sentences))))

    def labels(*said: str) -> list[str | None]:
        (got,) = score(
            "semantic_grounding", items_of("<think>" + "\n".join(said) + "</think><answer>left</answer>"), yes
        )
        judged = [d["label"] for d in got.detail["sentences"]]
        assert [d["label"] == "INCORRECT" for d in got.detail["sentences"]] == [
            bool(d.get("by_rule")) for d in got.detail["sentences"]
        ]
        values = [label == "CORRECT" for label in judged if label]
        assert got.value == pytest.approx(sum(values) / len(values))
        return judged

    car, box, other = "The car is red.", "It is at <bbox>[1,2,3,4]</bbox>.", "It is at <box>[5, 6, 7, 8]</box>."
    assert labels(*[car] * 4) == ["CORRECT"] + ["INCORRECT"] * 3
    assert labels(car, "the  CAR is red") == ["CORRECT", "INCORRECT"]
    assert labels(car, "The car is not red.", "The bus is red.") == ["CORRECT"] * 3  # other claims are the judge's
    assert labels(car, "A red car.") == ["CORRECT", "INCORRECT"]
    assert labels(car, box, car) == ["CORRECT", "CORRECT", "INCORRECT"]  # the claim has earned already
    assert labels(car, other, car) == ["CORRECT", "CORRECT", "INCORRECT"]
    assert labels(box, car, box, car) == ["CORRECT", "CORRECT", "INCORRECT", "INCORRECT"]
    assert labels(box, other) == ["CORRECT"] * 2  # another box is another claim
    assert labels("Let me think.", car, "Let me think.") == [None, "CORRECT", None]
    no = RewardContext(JudgeSet(scripted(lambda i: (Verdict("SKIP"),) * len(i.sentences))))
    (got,) = score("semantic_grounding", items_of(f"<think>{car}\n{car}</think><answer>left</answer>"), no)
    assert got.state == "not_applicable"  # what the judge skips stays skipped


def test_nothing_to_score_is_not_applicable(scripted: Any) -> None:
    judge = scripted(lambda item: tuple(Verdict("SKIP") for _ in item.sentences))
    context = RewardContext(JudgeSet(judge))
    texts = ("<think>Let me think.</think><answer>left</answer>", EMPTY_TRACE, "left", GOOD)
    assert [s.state for s in score("semantic_grounding", items_of(*texts), context)] == ["not_applicable"] * 4
    assert [item.id for item in judge.items] == ["r3"]


def test_no_think_tag(no_judge: JudgeSet) -> None:
    """There is no trace: no judge is called, nothing entails the answer, nothing can be grounded, and no box was given."""
    boxed = dataclasses.replace(SAMPLE, boxes=(Box(0, 0, 9, 9, "model"),))
    for text in ("The car is left.<answer>left</answer>", "It is at <bbox>[0,0,9,9]</bbox>. <answer>left</answer>"):
        items = [RewardItem("r", boxed, parse(text))]
        (consistency,), (semantic,), (spatial,), (task,) = (
            score(name, items, RewardContext(no_judge, mask="correct"))
            for name in ("consistency", "semantic_grounding", "spatial_grounding", "task")
        )
        assert (consistency.value, consistency.detail["cause"]) == (0.0, "no_trace")
        assert (semantic.state, spatial.value, task.value) == ("not_applicable", 0.0, 1.0)


CONTENTLESS = [
    "",
    " \n",
    ":",
    "...",
    "Thought process:",
    "thought process",
    "Let's think step by step.",
    "left",
    "<b></b>",
    "👍👍👍",
    "Solution",
    "1 2 3 4",
]
CONTENT = ["It moved left.", "There are two circles.", "红色的圆在左边", "The answer is left", "so it is left"]


@pytest.mark.parametrize("think", CONTENTLESS)
def test_a_trace_that_says_nothing_is_never_consistent(think: str, no_judge: JudgeSet) -> None:
    assert is_contentless(think)
    (got,) = score("consistency", items_of(f"<think>{think}</think><answer>left</answer>"), RewardContext(no_judge))
    assert (got.value, got.detail["cause"]) == (0.0, "no_trace")


@pytest.mark.parametrize("think", CONTENT)
def test_a_trace_that_says_something_is_left_to_the_judge(think: str) -> None:
    assert not is_contentless(think)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[q.Question, tuple[str, ...]]]]:
    """Eighty questions of all families, with their images and their truth."""
    root, rng = tmp_path_factory.mktemp("world"), random.Random(0)
    out, rows = [], []
    for n in range(80):
        question = q.make(q.FAMILIES[n % len(q.FAMILIES)], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            picture = render(scene, rng)
            path = root / f"{n}-{k}.png"
            picture.save(path)
            rows.append(json.dumps(entry(picture, scene)))
            paths.append(str(path))
        out.append((question, tuple(paths)))
    (root / "scenes.jsonl").write_text("\n".join(rows) + "\n")
    return root, out


def oracle(root: Path) -> JudgeSet:
    return build(schema.Judge(backend="oracle", model="oracle", max_completion_tokens=1, concurrency=1), root)


def world_items(world: Any, write: Any) -> list[RewardItem]:
    return [
        RewardItem(
            str(n),
            Sample(f"sat/t/{n}", paths, question.text, question.choices, question.answer),
            parse(write(question)),
        )
        for n, (question, paths) in enumerate(world[1])
    ]


def other(question: q.Question) -> str:
    return next(c for c in question.choices if c != question.answer)


def test_true_traces_are_faithful(world: Any) -> None:
    context = RewardContext(oracle(world[0]))
    items = world_items(world, q.trace)
    for name in ("consistency", "semantic_grounding"):
        assert {s.value for s in score(name, items, context)} == {1.0}


def test_a_flipped_answer_is_inconsistent_yet_grounded(world: Any) -> None:
    items = world_items(world, lambda x: q.write_trace(q.steps(x), other(x)))
    context = RewardContext(oracle(world[0]))
    assert {s.value for s in score("consistency", items, context)} == {0.0}
    assert {s.value for s in score("semantic_grounding", items, context)} == {1.0}


def test_a_false_statement_is_ungrounded_yet_consistent(world: Any) -> None:
    items = world_items(world, lambda x: q.write_trace([*q.steps(x)[:-1], q.conclusion(x, other(x))], other(x)))
    context = RewardContext(oracle(world[0]))
    assert {s.value for s in score("consistency", items, context)} == {1.0}
    for item, got in zip(items, score("semantic_grounding", items, context), strict=True):
        steps = len(item.response.think.splitlines())
        assert got.value == pytest.approx((steps - 1) / steps)


@pytest.mark.parametrize("kind", [*ERRORS, *CONTROLS])
def test_planted_errors_are_scored_as_the_scenes_dictate(kind: str, world: Any) -> None:
    """The whole path: text, parser, sentences, trivial filter, judge, score. Filler alone is not applicable, never grounded."""
    rng = random.Random(kind)
    made = [plant(kind, question, rng) for question, _ in world[1]]
    writing = iter(made)
    items = world_items(world, lambda _: next(writing).text)
    context = RewardContext(oracle(world[0]))
    assert [s.value for s in score("consistency", items, context)] == [float(m.consistent) for m in made]
    for m, got in zip(made, score("semantic_grounding", items, context), strict=True):
        # a conclusion that is repeated after new evidence is right, says the judge, but it has earned already
        earned = m.places if kind == "repeated_with_evidence" and "<bbox>" not in m.sentences[-1] else ()
        labels = [label if i not in earned else "INCORRECT" for i, label in enumerate(m.labels)]
        judged = [label == "CORRECT" for label in labels if label != "SKIP"]
        assert got.value == (pytest.approx(sum(judged) / len(judged)) if judged else None), m.text
        assert got.state == ("scored" if judged else "not_applicable")


def test_what_is_not_of_the_world_fails(world: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (50, 50)).save(tmp_path / "other.png")
    context = RewardContext(oracle(world[0]))
    for image in (str(tmp_path / "other.png"), str(tmp_path / "missing.png")):
        foreign = [RewardItem("x", dataclasses.replace(SAMPLE, images=(image,)), parse(GOOD))]
        assert [s.state for s in score("semantic_grounding", foreign, context)] == ["failed"]
        assert [s.state for s in score("consistency", foreign, context)] == ["failed"]
    with pytest.raises(UserError, match=r"scenes\.jsonl"):
        score("semantic_grounding", items_of(GOOD), RewardContext(oracle(tmp_path)))


def test_how_the_rewards_are_reported() -> None:
    consistency, semantic, spatial = (
        report_of(load(name)) for name in ("consistency", "semantic_grounding", "spatial_grounding")
    )
    assert consistency == Report("inconsistency", "inconsistency", False, True, False, True, "C", "#009E73", order=1)
    assert semantic == Report("semantic_grounding", "semantic grounding", symbol="G", colour="#0072B2", order=2)
    assert spatial == Report(
        "spatial_grounding", "spatial grounding", symbol="S", colour="#CC79A7", needs_boxes=True, order=3
    )
    assert report_of(load("task")) is None, "accuracy and format are reported instead"
    assert [judge_task_of(load(name)) is not None for name in ("consistency", "semantic_grounding")] == [True, True]
    assert judge_task_of(load("spatial_grounding")) is judge_task_of(load("task")) is None


def test_each_reward_asks_its_own_question(scripted: Any) -> None:
    judge = scripted(
        lambda item: (
            (Verdict("CORRECT"),) * len(item.sentences) if hasattr(item, "sentences") else Verdict("CONSISTENT")
        )
    )
    for name, task in (("consistency", "consistency"), ("semantic_grounding", "grounding")):
        score(name, items_of(GOOD), RewardContext(JudgeSet(judge)))
        assert judge.tasks[-1] == task
