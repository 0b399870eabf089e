"""Judges for tests of rewards: a set that must not be called, and scripted ones that remember their items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fgrpo.types import Verdict
from judges import JudgeSet, JudgeTask


class Scripted:
    """Answers each item of each task with `answer(item)`, a verdict or a tuple of them, and keeps the items."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer_item = answer
        self.items: list[Any] = []
        self.tasks: list[str] = []

    async def answer(self, task: JudgeTask[Any], items: Sequence[Any]) -> list[tuple[Verdict, ...]]:
        self.items.extend(items)
        self.tasks.extend([task.name] * len(items))
        answers = [self.answer_item(item) for item in items]
        return [answer if isinstance(answer, tuple) else (answer,) for answer in answers]


def _refuse(item: Any) -> Any:
    raise AssertionError(f"no judge should be called for {item.id}")


@pytest.fixture
def no_judge() -> JudgeSet:
    """Judges that fail the test when called."""
    return JudgeSet(Scripted(_refuse), "none")


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted
