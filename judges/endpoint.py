"""One endpoint of a judge: how busy it is, whether it is up, and how much a minute it may be asked.

An endpoint that fails too often in a row is left alone for a while, then tried again with one call at a time, each rest twice
as long as the one before (a circuit breaker per endpoint). A refusal with reason (400, 429) is a sign of life.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

import openai

FAILURES_WITH_OTHERS = 5  # failures in a row after which an endpoint rests if another one is up
LEAST_FAILURES_ALONE = 10  # the same if none is; never fewer than calls in flight, which may all fail of one hiccup
LONGEST_REST_S = 15.0
_BURST_S = 1.0
_WINDOW_S = 62.0  # so that no 60 seconds hold more than a minute's worth, the burst included


class Pace:
    """At most so many units in any minute, evenly spread, with bursts of a second's worth; None = no limit.

    A virtual-scheduling cell rate algorithm (ITU-T I.371). Shared between event loops and threads; of this process only.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._cost_s = 0.0 if per_minute is None else _WINDOW_S / per_minute
        self._at = 0.0
        self._lock = threading.Lock()

    def take(self, amount: float = 1.0) -> float:
        """Take a turn of `amount` units; returns in how many seconds it comes."""
        if not self._cost_s:
            return 0.0
        now = time.monotonic()
        with self._lock:
            turn = max(self._at, now - _BURST_S)
            self._at = turn + amount * self._cost_s
        return max(0.0, turn - now)

    def give_back(self, amount: float) -> None:
        """Return what of a turn was not used (negative: more was)."""
        if self._cost_s:
            with self._lock:
                self._at -= amount * self._cost_s


@dataclass
class Endpoint:
    """An address with its connections in one event loop."""

    url: str | None
    client: openai.AsyncOpenAI
    slots: int  # calls at a time
    free: asyncio.Semaphore
    requests: Pace
    tokens: Pace
    first_rest_s: float
    in_flight: int = 0
    failures: int = 0  # in a row
    down_since: float | None = None
    last_error: str = ""
    _rest_s: float = 0.0
    _rests_until: float = 0.0
    _probing: bool = field(default=False, repr=False)

    @property
    def name(self) -> str:
        """Its address in words."""
        return self.url or "OpenAI's endpoint"

    def is_ready(self, now: float) -> bool:
        """Whether a call may go there: it is up, or it has rested and nobody is probing it."""
        return self.down_since is None or (not self._probing and now >= self._rests_until)

    def wakes_in(self, now: float) -> float:
        """Seconds until it may be worth looking again."""
        return LONGEST_REST_S if self._probing else max(0.0, self._rests_until - now)

    def begin(self) -> bool:
        """A call goes there; says whether it is a probe."""
        if self.down_since is None:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        """It gave an answer of any kind: it is up."""
        self.failures, self.down_since, self._rest_s, self._probing = 0, None, 0.0, False

    def failed(self, error: str, was_probe: bool, others_are_up: bool) -> None:
        """It gave none. Rests begin here."""
        now = time.monotonic()
        self.failures += 1
        self.last_error = error
        limit = FAILURES_WITH_OTHERS if others_are_up else max(LEAST_FAILURES_ALONE, self.slots)
        if was_probe or (self.down_since is None and self.failures >= limit):
            self.down_since = now if self.down_since is None else self.down_since
            self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s or self.first_rest_s)
            self._rests_until = now + self._rest_s
        self.ended(was_probe)

    def ended(self, was_probe: bool) -> None:
        """A call there is over, however it went."""
        if was_probe:
            self._probing = False
