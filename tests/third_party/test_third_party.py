"""Cases that were written from the issue alone, before the code was read; one file of rows for each kind.

A row that is "contested" holds what the code does, with the reason in the row.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data_curation.gold import gold_index, read_gold
from data_curation.multiple_choice import AnswerPool, make_choices
from eval.extract import extract_choice
from fgrpo.files import read_jsonl
from fgrpo.inference.replies import read_reply
from fgrpo.options import UnclearOptions, split_options
from fgrpo.response import COMMON, parse, with_trace
from judges.requests import BARE_LABEL, REASONED_LABEL, ReplyFormat, Unusable
from rewards.claims import claims, distinct
from rewards.content import is_blank, is_contentless

LABELS = ("YES", "NO", "MAYBE")


def rows(name: str) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(__file__).parent / f"{name}.jsonl"))


def test_a_trace_is_found_wherever_it_arrives() -> None:
    wrong = []
    for row in rows("placements"):
        finish = "length" if row.get("cut") else "stop"
        body = {"choices": [{"index": 0, "message": {"role": "assistant", **row["message"]}, "finish_reason": finish}]}
        (choice,) = read_reply(json.dumps(body).encode()).choices
        text = with_trace(choice.text, choice.reasoning)
        response, index = parse(text, tags=COMMON), extract_choice(text, ("left", "right"))
        trace, answer = response.think or None, None if index is None else "AB"[index]
        if answer != row["answer"] or not (row.get("any_trace") or trace == row["trace"]):
            wrong.append((row, trace, answer))
    assert wrong == []


def test_what_has_content_and_what_has_none() -> None:
    read = [(row, not (is_contentless(row["text"]) or is_blank(row["text"]))) for row in rows("traces")]
    assert [row for row, has_content in read if has_content is not row["content"]] == []


def test_a_claim_counts_once_and_who_relates_to_what_matters() -> None:
    counted = [(row, len(set(distinct(claims(row["sentences"]))))) for row in rows("claims")]
    assert [(row, count) for row, count in counted if count != row["distinct"]] == []


def test_distractors_keep_the_sentence_and_change_the_answer() -> None:
    table, pool = rows("distractors"), AnswerPool()
    for row in table:
        pool.add("x", row["question"], row["answer"])
    made = 0
    for row in table:
        options = make_choices("x", row["question"], row["answer"], pool, random.Random(0), 4) or (row["answer"],)
        others = [option.casefold() for option in options if option != row["answer"]]
        made += bool(others)
        assert not any(row["focus"].casefold() in other for other in others), options
        assert all(kept.casefold() in other for other in others for kept in row["keeps"]), options
    assert made >= 37  # the pool is small, and Chinese is not split


def test_options_in_questions_are_split_rightly_or_refused() -> None:
    wrong = []
    for row in rows("options"):
        try:
            options = [option.rstrip(".") for option in split_options(row["text"])[1]] or None
        except UnclearOptions:
            options = None
        if options != (row["options"] and [option.rstrip(".") for option in row["options"]]):
            wrong.append((row, options))
    assert wrong == []


def test_gold_answers_of_annotations() -> None:
    for row in rows("gold"):
        gold, options = read_gold(row["reply"]), row["options"]
        index = gold_index(gold, options) if options else None
        assert (gold if not options else None if index is None else "AB"[index]) == row["gold"], row


def test_replies_of_judges_are_read_where_they_have_one_reading() -> None:
    wrong = []
    for row in rows("judge_replies"):
        for form, reply in ((BARE_LABEL, row["reply"]), (REASONED_LABEL, reasoned(row["reply"]))):
            if (label := label_of(form, reply)) != row["label"]:
                wrong.append((row, reply, label))
    assert wrong == []


def reasoned(reply: str) -> str:
    """The reply with a reason beside each label."""
    for key in ('{"label"', '{"Label"', "{'label'"):
        quote = key[1]
        reply = reply.replace(key, f"{{{quote}why{quote}: {quote}w{quote}, {key[1:]}")
    return reply


def label_of(form: ReplyFormat, reply: str) -> str | None:
    try:
        return form.parse(reply, LABELS, 1)[0][0]
    except Unusable:
        return None
