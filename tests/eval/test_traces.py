"""Replies whose reasoning comes elsewhere, or not at all: how they are scored, counted and tabulated."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from eval import models, score, summary, tables
from eval.extraction import EXTRACTION_TASK
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference import openai_engine, replies
from fgrpo.inference.base import Request
from fgrpo.types import Box, EvalRecord, Rollout, Sample, Verdict
from judges.base import JudgeSet
from rewards.consistency import CONSISTENCY_TASK

SAMPLE = Sample("own/test/0", (), "Is the cup left or right?", ("left", "right"), "left")
TRACE = "The cup is on the left side."


class Recorder:
    """A judge that finds everything consistent and extracts A; `items` is what it was shown, by task."""

    name = "recorder"

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []

    async def answer(self, task: Any, items: Any) -> list[Any]:
        self.items += [(task.name, item) for item in items]
        return [(Verdict("CONSISTENT" if task is CONSISTENCY_TASK else "A"),) for _ in items]

    async def close(self) -> None:
        pass


def scored(text: str, **spec: Any) -> tuple[EvalRecord, Recorder]:
    judge = Recorder()
    model = models.ModelSpec(title="M", path="m", prompt="think", grounding="none", **spec)
    scorer = score.Scorer(model, "m", JudgeSet(judge))
    (record,) = asyncio.run(scorer.score([(SAMPLE, Rollout("r", SAMPLE.id, text))]))
    return record, judge


SHOWN = [
    f"<think>{TRACE}</think><answer>A</answer>",
    f"<thinking>{TRACE}</thinking>A",
    f"<THINK>{TRACE}</THINK>\nThe answer is A.",
    f"◁think▷{TRACE}◁/think▷<answer>A</answer>",
    f"{TRACE}</think>A",
    f"<think>{TRACE}</think><|begin_of_box|>A<|end_of_box|>",
    f"<think>{TRACE}</think>The answer is $\\boxed{{\\text{{A}}}}$.",
]


@pytest.mark.parametrize("text", SHOWN)
def test_a_trace_in_any_common_tag_is_judged(text: str) -> None:
    record, judge = scored(text)
    assert record.scores["accuracy"].value == record.scores["consistency"].value == 1.0
    (shown,) = [item for task, item in judge.items if task == "consistency"]
    assert shown.think == TRACE and "trace" not in record.meta


@pytest.mark.parametrize("text", ["A", "<answer>A</answer>", "The answer is A.", "\\boxed{A}"])
def test_no_trace_at_all_is_no_inconsistency(text: str) -> None:
    record, judge = scored(text)
    consistency = record.scores["consistency"]
    assert record.scores["accuracy"].value == 1.0
    assert (consistency.state, consistency.reason) == ("not_applicable", "no trace visible")
    assert record.meta["trace"] == "no trace visible" and not judge.items


@pytest.mark.parametrize(("text", "state"), [("A", "not_applicable"), ("<think> </think>A", "scored")])
def test_spatial_grounding_needs_a_trace_too(text: str, state: str) -> None:
    sample = dataclasses.replace(SAMPLE, boxes=(Box(0, 0, 9, 9, "model"),))
    model = models.ModelSpec(title="M", path="m", prompt="think", grounding="boxes")
    (record,) = asyncio.run(score.Scorer(model, "m", JudgeSet(Recorder())).score([(sample, Rollout("r", "s", text))]))
    found = record.scores["spatial_grounding"]
    assert (found.state, found.value) == (state, None if state == "not_applicable" else 0.0)
    assert (found.reason == "no trace visible") is (state == "not_applicable")


def test_an_empty_trace_is_still_inconsistent() -> None:
    record, _ = scored("<think> </think><answer>A</answer>")
    assert record.scores["consistency"].value == 0.0 and "trace" not in record.meta


def test_tags_of_the_models_file() -> None:
    text = f"[REASON]{TRACE}[/REASON]<final>A</final>"
    assert scored(text)[0].scores["consistency"].reason == "no trace visible"
    record, _ = scored(text, think_tags=("[REASON]",), answer_tags=("<final>",))
    assert record.scores["consistency"].value == record.scores["accuracy"].value == 1.0
    assert scored(f"<think>{TRACE}</think>A", think_tags=("[REASON]",))[0].scores["consistency"].value == 1.0
    assert scored(f"<THINK>{TRACE}</THINK>A", tags_case_blind=False)[0].scores["consistency"].state == "not_applicable"
    truncated, _ = scored(TRACE, template_opens_trace=True)
    assert truncated.scores["accuracy"].reason == "no answer" and "trace" not in truncated.meta


def test_a_tag_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("{title: M, path: m, prompt: think, think_tags: ['a tag']}")
    with pytest.raises(UserError, match=r"think_tags.*is no opening tag"):
        models.load("m", tmp_path, tmp_path)


UNTAGGED = [
    f"{TRACE}\n<answer>A</answer>",
    f"{TRACE} <answer>left</answer>",
    f"{TRACE} Therefore the answer is $\\boxed{{A}}$.",
    f"{TRACE}\n\n\\boxed{{A}}",
    f"{TRACE}\n\n**Answer:** A",
    f"{TRACE}\n\nThe answer to the question is A.\nI hope this helps!",
    f"{TRACE}\n\n**Final answer**\nA",
    f"{TRACE}\nA",
    f"{TRACE} The answer is A.",
    f"\n{TRACE} So the answer is: A",
    f"{TRACE} So it is A.",
    f"<think>{TRACE}</think><answer>A</answer>",
]


@pytest.mark.parametrize("text", UNTAGGED)
def test_what_precedes_the_answer_is_the_trace_where_the_model_file_says_so(text: str) -> None:
    record, judge = scored(text, trace="before_answer")
    assert record.scores["accuracy"].value == 1.0
    (asked,) = [item for task, item in judge.items if task == "consistency"]
    assert asked.think.strip() == TRACE


@pytest.mark.parametrize("text", UNTAGGED[:-1])
def test_without_that_key_untagged_reasoning_is_no_trace(text: str) -> None:
    record, _ = scored(text)
    assert record.scores["consistency"].state == "not_applicable" and record.scores["accuracy"].value == 1.0


@pytest.mark.parametrize("text", ["A", "<answer>A</answer>", "The answer is A.", "\\boxed{A}"])
def test_a_reply_of_one_sentence_has_no_trace_before_its_answer(text: str) -> None:
    assert scored(text, trace="before_answer")[0].scores["consistency"].state == "not_applicable"


@pytest.mark.parametrize("name", ["vl-rethinker", "gpt-4o", "gpt-5-nano"])
def test_models_that_write_no_think_tags_say_so(name: str) -> None:
    assert models.load(name).tags.untagged and not models.load("fgrpo").tags.untagged


@pytest.mark.parametrize(
    ("text", "trace", "answer"),
    [
        ("A\n\nThe cup is right of the lamp.", "The cup is right of the lamp.", "A"),
        (f"{TRACE}\n\nA. left\n\nHope this helps!", TRACE, "A. left"),
        (f'{{"reasoning": "{TRACE}", "answer": "A"}}', TRACE, "A"),
    ],
)
def test_an_untagged_reply_is_judged_by_its_trace_and_scored_as_a_whole(text: str, trace: str, answer: str) -> None:
    record, judge = scored(text, trace="before_answer")
    (asked,) = [item for task, item in judge.items if task == "consistency"]
    assert (asked.think, asked.answer, record.scores["accuracy"].value) == (trace, answer, 1.0)
    assert record.meta["answer_from"] == "rules"


def test_the_extraction_judge_sees_all_of_an_untagged_reply() -> None:
    text = "The cup stands there.\nthe former"
    record, judge = scored(text, trace="before_answer")
    (shown,) = [item for task, item in judge.items if task == EXTRACTION_TASK.name]
    assert shown.answer_span == text and record.meta["answer_from"] == "judge"


def test_an_open_untagged_reply_is_scored_as_a_whole() -> None:
    sample = dataclasses.replace(SAMPLE, choices=(), answer="3")
    model = models.load("gpt-4o")
    text = "Dogs: 2\nCats: 1\n\nTotal: 3"
    (record,) = asyncio.run(
        score.Scorer(model, "m", JudgeSet(Recorder())).score([(sample, Rollout("r", SAMPLE.id, text))])
    )
    assert (record.scores["accuracy"].value, record.meta["answer"]) == (1.0, "Total: 3")


def test_the_extraction_judge_sees_the_answer_alone() -> None:
    for text in (f"<thinking>{TRACE}</thinking>the former", f"◁think▷{TRACE}◁/think▷the former"):
        record, judge = scored(text)
        (shown,) = [item for task, item in judge.items if task == EXTRACTION_TASK.name]
        assert shown.answer_span == "the former" and record.meta["answer_from"] == "judge"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_reasoning_field_of_an_endpoint_reaches_the_scores(field: str) -> None:
    message = {"role": "assistant", "content": "A", field: TRACE}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    reply = replies.read_reply(json.dumps(body).encode())
    completion = openai_engine._completion(Request((), "?"), reply.choices[0], 0)
    record, judge = scored(completion.text)
    assert record.scores["consistency"].value == record.scores["accuracy"].value == 1.0
    assert judge.items[0][1].think == TRACE


def test_replies_without_a_trace_have_their_own_column() -> None:
    records = [scored(text)[0] for text in ("A", SHOWN[0], "<answer>B</answer>", "A")]
    settings = load("mini", "fgrpo").eval
    records = [
        EvalRecord(f"r{n}", "mmvp", "m", f"s{n}", r.scores, {**r.meta, "group": n}) for n, r in enumerate(records)
    ]
    found = summary.summarise(records, (), settings)
    assert found["greedy"]["counts"]["no_trace"] == 3
    assert found["greedy"]["benchmarks"]["mmvp"]["no_trace"]["value"] == 0.75
    assert found["greedy"]["benchmarks"]["mmvp"]["inconsistency"] | {"low": 0.0, "high": 0.0} == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 1,
    }
    row = tables.Result("m", "M", Path("."), found)
    table = tables._faithfulness_table([row], "greedy", "greedy", load("mini", "fgrpo"), "range")
    assert table.headings[-1] == "no trace" and table.rows[0][-1] == "75.0"
