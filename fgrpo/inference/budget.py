"""What a model costs: requests, tokens, money, and a cap past which no more requests are sent.

Prices are money per million tokens, in whatever currency the configuration means; without them a meter says so and counts
tokens alone. A ledger (a jsonl file in a run's folder, one line per reply) lets a meter resume where a killed process stopped,
and lets several processes of one run see each other's spending.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.resume import LEDGER as LEDGER

MILLION = 1_000_000
_CHARACTERS_PER_TOKEN, _TOKENS_PER_IMAGE = 3, 1200  # of what is reserved before a reply gives its usage


@dataclass(frozen=True)
class Budget:
    """Prices (money per million tokens that a model reads and writes), and caps on money and tokens.

    None means that a price is not known, or that there is no cap.

    Raises:
        UserError: a cap on money without both prices.
    """

    prompt_price: float | None = None
    completion_price: float | None = None
    money_cap: float | None = None
    token_cap: int | None = None

    def __post_init__(self) -> None:
        if self.money_cap is not None and self.price(1, 1) is None:
            raise UserError(
                f"a cap of {self.money_cap:g} on money needs prices; set prompt_price and completion_price (money per million "
                "tokens) as well, or token_cap instead"
            )

    def price(self, prompt: int, completion: int) -> float | None:
        """The cost of this many tokens; None where a price is not known."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (prompt * self.prompt_price + completion * self.completion_price) / MILLION


@dataclass
class UsageMeter:
    """Requests and tokens so far, safe between threads; `name` is the model, which its ledger's lines hold.

    `reserve` is called before a request and `settle` after it, so that requests in flight count too: a cap is never passed by
    more than the error of the reservations' estimates. `stopped` is the reason of the last refused request (None: none was). It
    stays, since the refused request is missing whatever fits in later.

    `faults` counts requests that went wrong, by kind, whether a later attempt succeeded or not. `retries` are further attempts,
    and `waited_s` the seconds of wait before them.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    name: str = field(default="", kw_only=True)
    budget: Budget = field(default_factory=Budget, kw_only=True)
    retries: int = field(default=0, kw_only=True)
    waited_s: float = field(default=0.0, kw_only=True)
    faults: dict[str, int] = field(default_factory=dict, kw_only=True)
    stopped: str | None = field(default=None, init=False)
    _reserved: tuple[int, int] = field(default=(0, 0), init=False, repr=False)
    _ledger: _Ledger | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def keep(self, path: str | Path) -> None:
        """Resume from the ledger at `path`, and write to it from now on. Raises UserError if it is broken."""
        with self._lock:
            self._ledger = _Ledger(Path(path), self.name)
            self._read()

    @property
    def money(self) -> float | None:
        """The cost of the tokens so far; None where a price is not known."""
        return self.budget.price(self.prompt_tokens, self.completion_tokens)

    def reserve(self, prompt: int, completion: int) -> str | None:
        """Reserve a request of about this many tokens; returns the reason if a cap does not allow it."""
        with self._lock:
            reason = self._full(prompt, completion)
            if reason is None:
                self._reserved = (self._reserved[0] + prompt, self._reserved[1] + completion)
                self.requests += 1
            else:
                self.stopped = reason
            return reason

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """Release `reserved` and count the tokens `used` (None: the request got no reply)."""
        with self._lock:
            self._reserved = (self._reserved[0] - reserved[0], self._reserved[1] - reserved[1])
            if used is None:
                return
            if self._ledger is None:
                self.prompt_tokens += used[0]
                self.completion_tokens += used[1]
            else:
                self._ledger.add(*used)
                self._read()

    def add(self, prompt: int, completion: int) -> None:
        """Count a request that was not reserved."""
        with self._lock:
            self.requests += 1
        self.settle((0, 0), (prompt, completion))

    def wait(self, seconds: float) -> None:
        """Count a retry and the wait before it."""
        with self._lock:
            self.retries += 1
            self.waited_s += seconds

    def fault(self, kind: str) -> None:
        """Count a request that went wrong."""
        with self._lock:
            self.faults[kind] = self.faults.get(kind, 0) + 1

    def __str__(self) -> str:
        """Short, for a progress bar: "1.2M tokens, 3.40 of 50.00"."""
        tokens = self.prompt_tokens + self.completion_tokens
        text = f"{_short(tokens)} tokens"
        if self.budget.token_cap is not None:
            text += f" of {_short(self.budget.token_cap)}"
        money = self.money
        if money is None:
            return f"{text}, no price given"
        return f"{text}, {money:.2f}" + ("" if self.budget.money_cap is None else f" of {self.budget.money_cap:.2f}")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON for a manifest; `money` None means that no price was given."""
        names = ("requests", "prompt_tokens", "completion_tokens")
        return {**{name: getattr(self, name) for name in names}, "money": self.money}

    def _full(self, prompt: int, completion: int) -> str | None:
        budget = self.budget
        prompt += self.prompt_tokens + self._reserved[0]
        completion += self.completion_tokens + self._reserved[1]
        if budget.token_cap is not None and prompt + completion > budget.token_cap:
            return f"the cap of {budget.token_cap:,} tokens for {self.name or 'this model'} is reached ({self})"
        if budget.money_cap is not None and (budget.price(prompt, completion) or 0.0) > budget.money_cap:
            return f"the cap of {budget.money_cap:g} on what {self.name or 'this model'} may cost is reached ({self})"
        return None

    def _read(self) -> None:
        assert self._ledger is not None
        self.prompt_tokens, self.completion_tokens = self._ledger.read()


class _Ledger:
    """One line per reply, appended in one write; `read` sums the lines of one name, also those of other processes."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._read_bytes, self._sum = 0, [0, 0]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if data and not data.endswith(b"\n"):  # a writer was killed in the middle of a line
            os.ftruncate(self._file, data.rfind(b"\n") + 1)

    def __del__(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)

    def add(self, prompt: int, completion: int) -> None:
        line = json.dumps({"model": self._name, "prompt_tokens": prompt, "completion_tokens": completion})
        os.write(self._file, line.encode() + b"\n")

    def read(self) -> tuple[int, int]:
        data = os.pread(self._file, os.fstat(self._file).st_size - self._read_bytes, self._read_bytes)
        complete = data[: data.rfind(b"\n") + 1]
        for line in complete.splitlines():
            try:
                row = json.loads(line)
                if row["model"] == self._name:
                    self._sum[0] += int(row["prompt_tokens"])
                    self._sum[1] += int(row["completion_tokens"])
            except (ValueError, KeyError, TypeError):
                if line.strip():
                    raise UserError(
                        f"{self._path} holds a line that is no spending ({line[:80]!r}); delete that line, then rerun to resume"
                    ) from None
        self._read_bytes += len(complete)
        return self._sum[0], self._sum[1]


def _short(count: int) -> str:
    for size, mark in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{mark}"
    return str(count)


def estimate(text: str, images: int, completion: int) -> tuple[int, int]:
    """Tokens that a request will read, roughly, and write, at most: its reservation until the reply gives its usage."""
    return len(text) // _CHARACTERS_PER_TOKEN + images * _TOKENS_PER_IMAGE, completion
