"""Judges for tests of rewards: one that must not be asked, and scripted ones that remember what they were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from judges.base import JudgeSet


class Scripted:
    """Answers each item with `answer(item)` and keeps the items."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer, self.asked = answer, []  # type: ignore[var-annotated]

    async def judge(self, items: Sequence[Any]) -> list[Any]:
        self.asked.extend(items)
        return [self.answer(item) for item in items]


def _refuse(item: Any) -> Any:
    raise AssertionError(f"nobody was to be asked about {item.id}")


@pytest.fixture
def nobody() -> JudgeSet:
    """Judges that fail the test when asked."""
    return JudgeSet(Scripted(_refuse), Scripted(_refuse), Scripted(_refuse), "nobody")


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted
