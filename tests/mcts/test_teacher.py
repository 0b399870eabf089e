"""How the teacher parses an engine's text: steps, closings over several lines, blank lines, truncated and broken steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fgrpo.config import load
from fgrpo.inference.base import Completion, NoText, Request, Unreachable
from mcts.teacher import SamplerTeacher, read_step
from tests.mcts.scripted import sample

MCTS = load("mini", overrides=["mcts.temperature=0.6", "mcts.top_p=0.9"]).mcts


class Replies:
    """An engine that returns its replies in order, whatever the request."""

    def __init__(self, *replies: tuple[str, str]) -> None:
        self.left, self.requests = list(replies), list[Request]()

    async def sample(self, request: Request) -> Sequence[Completion]:
        self.requests.append(request)
        out = []
        for _ in range(request.n):
            text, finish = self.left.pop(0)
            out.append(Completion(text, finish, (1, 2), (-1.0, -2.0)))  # type: ignore[arg-type]
        return out

    async def close(self) -> None: ...


def steps(*replies: tuple[str, str], n: int = 1) -> tuple[list, Replies, SamplerTeacher]:  # type: ignore[type-arg]
    engine = Replies(*replies)
    teacher = SamplerTeacher(engine, sample(), "Is it left?", MCTS)
    return asyncio.run(teacher.steps("<think>a\n", n, 7)), engine, teacher


def test_a_step_stops_at_a_line_break_or_the_end_of_the_answer() -> None:
    (step,), engine, teacher = steps(("The cat sits.\n", "stop"))
    assert (step.text, step.answer, step.problem, step.logprob, step.tokens) == ("The cat sits.", None, None, -1.5, 2)
    (requests,) = engine.requests
    assert requests.stop == ("\n", "</answer>") and requests.prefix == "<think>a\n" and requests.seed == 7
    assert (requests.temperature, requests.top_p, requests.max_new_tokens) == (0.6, 0.9, MCTS.step_max_new_tokens)
    assert teacher.requests == 1


def test_a_closing_step_carries_its_answer() -> None:
    (step,), _, _ = steps(("So left.</think><answer> left </answer>", "stop"))
    assert (step.text, step.answer, step.problem) == ("So left.", "left", None)


@pytest.mark.parametrize(
    "replies",
    [
        [("So left.</think>\n", "stop"), ("<answer>left</answer>", "stop")],
        [("So left.</think>\n", "stop"), ("\n", "stop"), ("<answer>left</answer>", "stop")],
        [("So left.</think><answer>\n", "stop"), ("left\n</answer>", "stop")],
    ],
)
def test_a_trace_closed_over_several_lines_is_one_step(replies: list[tuple[str, str]]) -> None:
    (step,), engine, teacher = steps(*replies)
    assert (step.text, step.answer, step.problem, step.tokens) == ("So left.", "left", None, 2 * len(replies))
    assert engine.requests[1].stop == ("</answer>",) and engine.requests[1].prefix == "<think>a\n" + replies[0][0]
    assert teacher.requests == len(replies)


def test_a_blank_line_is_skipped_and_a_bare_closing_has_no_step_text() -> None:
    (step,), _, _ = steps(("\n", "stop"), ("The cat.\n", "stop"))
    assert (step.text, step.problem) == ("The cat.", None)
    (step,), _, _ = steps(("</think>\n", "stop"), ("<answer>left</answer>", "stop"))
    assert (step.text, step.answer, step.problem) == ("", "left", None)


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ([("and on and on", "length")], "unended"),
        ([("\n", "stop")] * 3, "blank"),
        ([("I am done.", "stop")], "ended_early"),
        ([("a</think>\n", "stop"), ("<answer>le", "length")], "unended"),
        ([("a</think>", "stop")], "malformed"),
        ([("<answer>left</answer>", "stop")], "malformed"),
        ([("<think>a\n", "stop")], "malformed"),
        ([("a</think><answer>x</answer></answer>", "stop")], "malformed"),
        ([("a</think><answer></answer>", "stop")], "malformed"),
        ([("see <|image_pad|>\n", "stop")], "special_token"),
        ([("half \ufffd of it\n", "stop")], "broken_text"),
    ],
)
def test_unusable_text_has_a_problem_and_raises_nothing(replies: list[tuple[str, str]], problem: str) -> None:
    (step,), _, _ = steps(*replies)
    assert step.problem == problem


def test_the_first_line_may_not_close_a_trace_without_steps() -> None:
    assert read_step("<think>", "</think><answer>left</answer>", False, 0.0, 3).problem == "malformed"


def test_endings_run_to_the_answer() -> None:
    engine = Replies(("b</think><answer>left</answer>", "stop"), ("b b b", "length"))
    endings = asyncio.run(SamplerTeacher(engine, sample(), "?", MCTS).endings("<think>a\n", 2, 3))
    assert [e.finished for e in endings] == [True, False]
    assert engine.requests[0].stop == ("</answer>",) and engine.requests[0].n == 2


def test_a_continuation_without_text_costs_one_proposal() -> None:
    """The other proposals of the same expansion are good; an outage still fails them all."""

    class Mute(Replies):
        error: type[Exception] = NoText

        async def sample(self, request: Request) -> Sequence[Completion]:
            if request.n == 1:
                raise self.error("the message has no text")
            return await super().sample(request)

    replies = [("One.\n", "stop"), ("\n", "stop"), ("Two.\n", "stop")]
    one, mute, two = asyncio.run(SamplerTeacher(Mute(*replies), sample(), "q", MCTS).steps("<think>a\n", 3, 7))
    assert [s.problem for s in (one, mute, two)] == [None, "no_text", None] and mute.tokens == 2
    gone = Mute(*replies)
    gone.error = Unreachable
    with pytest.raises(Unreachable):
        asyncio.run(SamplerTeacher(gone, sample(), "q", MCTS).steps("<think>a\n", 3, 7))
