"""Numbers and parts of a reply that are valid JSON and no sane completion: never a traceback."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fgrpo.inference.replies import BadReply, read_reply


def choice(**more: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": "stop", "message": {"content": "A"}, **more}


def body(**more: Any) -> bytes:
    return json.dumps({"choices": [choice()], **more}).encode()


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**300, 1e308, 3.0])
def test_a_log_probability_without_bounds_is_an_odd_choice(number: float) -> None:
    odd = choice(token_ids=[1], logprobs={"content": [{"logprob": number}]})
    with pytest.raises(BadReply, match="no finite number"):
        read_reply(body(choices=[odd]))


@pytest.mark.parametrize("token", [10**300, 2**31, -1, True])
def test_a_token_id_without_bounds_is_an_odd_choice(token: int) -> None:
    odd = choice(token_ids=[token], logprobs={"content": [{"logprob": -1.0}]})
    with pytest.raises(BadReply, match="no ids"):
        read_reply(body(choices=[odd]))


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 10**400, "completion_tokens": 1}, {"prompt_tokens": 1, "completion_tokens": 10**400}]
)
def test_a_usage_without_bounds_is_none(usage: dict[str, int]) -> None:
    assert read_reply(body(usage=usage)).usage is None


@pytest.mark.parametrize("code", ["9" * 5000, "4290", 10**400, [], {}])
def test_an_error_code_without_bounds_is_read(code: object) -> None:
    with pytest.raises(BadReply) as reply:
        read_reply(json.dumps({"error": {"code": code, "message": "x"}}).encode())
    assert reply.value.status is None and "x" in reply.value.detail


def test_a_quota_that_only_the_type_names() -> None:
    error = {"error": {"type": "insufficient_quota", "code": "rate_limited", "message": "x"}}
    with pytest.raises(BadReply) as reply:
        read_reply(json.dumps(error).encode())
    assert reply.value.code == "insufficient_quota" and reply.value.status == 429


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so B"}]}, {"type": "text", "text": "A"}]}, "A", "so B"),
        ({"content": [{"type": "reasoning", "text": "so B"}, {"type": "text", "text": "A"}]}, "A", "so B"),
        ({"content": [{"type": "thinking", "thinking": "so B"}, {"type": "output_text", "text": "A"}]}, "A", "so B"),
        ({"content": "A", "reasoning_content": [{"text": "so "}, "B"]}, "A", "so B"),
        ({"content": "A", "reasoning": {"text": "so B"}}, "A", "so B"),
        ({"content": "A", "reasoning": "", "reasoning_details": [{"type": "reasoning.text", "text": "so B"}]}, "A", "so B"),
        ({"content": "A", "reasoning_details": [{"type": "reasoning.encrypted", "data": "xx"}]}, "A", ""),
        ({"content": "A", "reasoning_content": " ", "thinking": "so B"}, "A", "so B"),
        ({"content": "A", "reasoning": 3, "reasoning_content": None}, "A", ""),
        ({"content": ["A", {"text": "B"}]}, "AB", ""),
        ({"content": [{"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": "A"}]}, "A", ""),
    ],
)  # fmt: skip
def test_parts_of_reasoning_are_no_answer(message: dict[str, Any], text: str, reasoning: str) -> None:
    (read,) = read_reply(body(choices=[choice(message=message)])).choices
    assert (read.text, read.reasoning) == (text, reasoning)


def test_the_usable_choices_of_a_reply_are_kept() -> None:
    empty = choice(index=1, message={"content": ""})
    reply = read_reply(body(choices=[choice(), empty, choice(index=2, message={"content": "C"})]), 3)
    assert [c.text for c in reply.choices] == ["A", "C"] and [e.kind for e in reply.unusable] == ["no text"]
    with pytest.raises(BadReply, match="no text"):
        read_reply(body(choices=[empty, empty]), 2)


HIDDEN = [
    (
        {"content": ""},
        {"prompt_tokens": 9, "completion_tokens": 64, "completion_tokens_details": {"reasoning_tokens": 64}},
    ),
    ({"content": None, "reasoning_details": [{"type": "reasoning.encrypted", "data": "xx"}]}, None),
    ({"content": [{"type": "redacted_thinking", "data": "xx"}]}, None),
    ({"content": "", "reasoning_content": "so"}, None),
]


@pytest.mark.parametrize(("message", "usage"), HIDDEN)
def test_a_reply_that_ends_within_hidden_reasoning_is_truncated(message: dict[str, Any], usage: Any) -> None:
    """OpenAI's models count their reasoning and do not show it."""
    (read,) = read_reply(body(choices=[choice(message=message, finish_reason="length")], usage=usage)).choices
    assert (read.text, read.finish) == ("", "length")
    with pytest.raises(BadReply, match="has no text"):
        read_reply(body(choices=[choice(message=message, finish_reason="stop")], usage=usage))
    with pytest.raises(BadReply, match="the model refused"):
        read_reply(body(choices=[choice(message=message | {"refusal": "no"}, finish_reason="length")], usage=usage))


def test_an_empty_text_without_a_sign_of_reasoning_is_truncated_only_for_those_who_widen() -> None:
    empty = body(choices=[choice(message={"content": ""}, finish_reason="length")])
    with pytest.raises(BadReply, match="raise the limit"):
        read_reply(empty)
    assert read_reply(empty, takes_cut_off=True).choices[0].finish == "length"
    with pytest.raises(BadReply, match="has no text"):
        read_reply(body(choices=[choice(message={"content": ""})]), takes_cut_off=True)
