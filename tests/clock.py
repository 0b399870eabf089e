"""A clock for tests that does not wait: sleeping moves it forward at once."""

from __future__ import annotations

import asyncio

import pytest

from fgrpo.inference.clock import Clock


class FakeClock(Clock):
    """Starts at `seconds`; `slept` is the sum of all waits."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds, self.slept = seconds, 0.0

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept += seconds
        await asyncio.sleep(0)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every clock quick: waits take no time, and one second of them counts as a hundredth of one.

    So patience is measured in waits, which come in another order on a busy machine, and never ends by accident.
    """
    seconds = [1000.0]

    async def sleep(self: Clock, wait_s: float) -> None:
        seconds[0] += wait_s / 100
        await asyncio.sleep(0)

    monkeypatch.setattr(Clock, "now", lambda self: seconds[0])
    monkeypatch.setattr(Clock, "sleep", sleep)
