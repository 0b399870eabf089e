"""One endpoint: how busy it is, whether it is up, and how many requests and tokens per minute it may get.

An endpoint that fails too often in a row rests for a while. Then one request at a time probes it, and each rest is twice as
long as the one before (one circuit breaker per endpoint). An answer with a reason (400, 429) is a sign of life.
"""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import dataclass, field

import openai

from fgrpo.inference.addresses import shown
from fgrpo.inference.clock import SYSTEM, Clock

FIRST_PATIENCE_S = 60.0  # with endpoints that have never answered
FAILURES_WITH_OTHERS = 5  # failures in a row after which an endpoint rests if another one is up
LEAST_FAILURES_ALONE = 10  # the same if none is; never fewer than its slots, which may all fail of one hiccup
_BURST_S = 1.0
_WINDOW_S = 62.0  # so that no 60 seconds hold more than a minute's worth, the burst included


@dataclass(frozen=True)
class Limits:
    """How hard a client tries and how much it sends.

    Attributes:
        concurrency: requests in flight, over all endpoints; `per_endpoint` bounds each of them (None: no own bound).
        attempts: attempts per request; the limit for what may be the request's own fault (a time-out, a reply without text).
        repeats_itself: the same request gets the same text (temperature 0), so a text that was withheld twice in a row, for the
            same reason, ends the request.
        timeout_s: seconds per attempt.
        patience_s: seconds for which a request is retried while the fault is an endpoint's (429, 5xx, a cut connection), and
            for which requests wait while all endpoints are down, before they fail at once. 0: attempts alone decide.
        first_patience_s: the most of `patience_s` before any endpoint has answered, when a wrong address is likelier than a
            restart; None: the same as `patience_s`.
        first_wait_s: mean wait before the first retry is half of this; it doubles up to `longest_backoff_s`.
        longest_wait_s: what a Retry-After header may request.
        longest_rest_s: the longest rest of an endpoint that is down.
        requests_per_minute, tokens_per_minute: per endpoint, of this process; None: no limit.
    """

    concurrency: int
    per_endpoint: int | None = None
    attempts: int = 6
    repeats_itself: bool = False
    timeout_s: float = 600.0
    patience_s: float = 0.0
    first_patience_s: float | None = None
    first_wait_s: float = 0.5
    longest_backoff_s: float = 30.0
    longest_wait_s: float = 30.0
    longest_rest_s: float = 15.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def slots(self) -> int:
        """Requests in flight per endpoint."""
        return self.per_endpoint or self.concurrency

    @property
    def first_rest_s(self) -> float:
        """The first rest of an endpoint that is down."""
        return min(2 * self.first_wait_s, self.longest_rest_s)


class Pace:
    """At most so many units in any minute, evenly spread, with bursts of a second's worth; None = no limit.

    A virtual-scheduling cell rate algorithm (ITU-T I.371). Shared between event loops and threads; of this process only.
    """

    def __init__(self, per_minute: float | None, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._cost_s = 0.0 if per_minute is None else _WINDOW_S / per_minute
        self._next_s = 0.0
        self._lock = threading.Lock()

    def take(self, amount: float = 1.0) -> float:
        """Take a turn of `amount` units; returns the seconds until it comes."""
        if not self._cost_s:
            return 0.0
        now = self._clock.now()
        with self._lock:
            turn = max(self._next_s, now - _BURST_S)
            self._next_s = turn + amount * self._cost_s
        return max(0.0, turn - now)

    def give_back(self, amount: float) -> None:
        """Return the unused part of a turn (negative: more was used)."""
        if self._cost_s:
            with self._lock:
                self._next_s -= amount * self._cost_s


@dataclass
class Endpoint:
    """An address with its connections in one event loop, and its circuit breaker.

    `served` are the names of its models, once they are known; `is_vllm` whether a vLLM server lists them.
    """

    url: str | None
    connection: openai.AsyncOpenAI
    limits: Limits
    requests: Pace
    tokens: Pace
    clock: Clock = SYSTEM
    in_flight: int = 0
    has_answered: bool = False
    down_since: float | None = None
    last_error: str = ""
    served: tuple[str, ...] | None = None
    is_vllm: bool = False
    unlisted_since: float | None = None  # when its list of models could first not be read
    slots: asyncio.Semaphore = field(init=False, repr=False)
    model_check: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _failures: int = 0  # in a row
    _rest_s: float = 0.0
    _rests_until: float = 0.0
    _probing: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limits.slots)

    @property
    def name(self) -> str:
        """Its address, for messages."""
        return shown(self.url) if self.url else "OpenAI's endpoint"

    def is_ready(self, now: float) -> bool:
        """Whether a request may go there: it is up, or it has rested and no other request probes it."""
        return self.down_since is None or (not self._probing and now >= self._rests_until)

    def wakes_in(self, now: float) -> float:
        """Seconds until it may be ready again."""
        return self.limits.longest_rest_s if self._probing else max(0.0, self._rests_until - now)

    def begin(self) -> bool:
        """Note that a request goes there; returns whether it is a probe."""
        if self.down_since is None:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        """Note an answer of any kind: it is up."""
        self._failures, self.down_since, self._rest_s, self._probing = 0, None, 0.0, False
        self.has_answered = True

    def failed(self, error: str, was_probe: bool, others_are_up: bool) -> None:
        """Note that it gave no answer. Rests begin here.

        The last endpoint that is up rests only if requests wait for it (`patience_s`).
        """
        now = self.clock.now()
        self._failures, self.last_error = self._failures + 1, error
        alone = max(LEAST_FAILURES_ALONE, self.limits.slots) if self.limits.patience_s else math.inf
        limit = FAILURES_WITH_OTHERS if others_are_up else alone
        if was_probe or (self.down_since is None and self._failures >= limit):
            self.down_since = now if self.down_since is None else self.down_since
            self._rest_s = min(self.limits.longest_rest_s, 2 * self._rest_s or self.limits.first_rest_s)
            self._rests_until = now + self._rest_s
        self.ended(was_probe)

    def ended(self, was_probe: bool) -> None:
        """Note that a request there is over, however it ended."""
        if was_probe:
            self._probing = False
