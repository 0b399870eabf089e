"""The usage meter: prices or none, a cap that counts requests in flight, a ledger shared by processes and resumed."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from fgrpo.inference.budget import Budget, UsageMeter


def test_without_prices_it_counts_tokens_alone() -> None:
    meter = UsageMeter(name="m")
    meter.add(1_500_000, 200)
    assert meter.money is None and meter.to_dict()["money"] is None
    assert str(meter) == "1.5M tokens, no price given"
    with pytest.raises(UserError, match="prompt_price and completion_price"):
        Budget(money_cap=5.0)


def test_money_is_tokens_times_prices() -> None:
    meter = UsageMeter(budget=Budget(2.0, 10.0, money_cap=50.0))
    meter.add(1_000_000, 300_000)
    assert meter.money == pytest.approx(5.0)
    assert str(meter) == "1.3M tokens, 5.00 of 50.00"


def test_the_cap_counts_what_is_in_flight() -> None:
    meter = UsageMeter(name="gpt", budget=Budget(1.0, 1.0, money_cap=0.001))
    assert meter.reserve(400, 100) is None
    assert meter.reserve(300, 100) is None
    refused = meter.reserve(150, 0)
    assert refused is not None and "the cap of 0.001 on what gpt may cost" in refused
    assert meter.stopped == refused and meter.requests == 2
    meter.settle((300, 100), (100, 10))  # it took less than was reserved
    assert meter.reserve(150, 0) is None
    assert meter.stopped == refused  # the refused request is still missing
    meter.settle((400, 100), None)
    assert (meter.prompt_tokens, meter.completion_tokens) == (100, 10)


def test_a_cap_on_tokens_needs_no_price() -> None:
    meter = UsageMeter(name="m", budget=Budget(token_cap=1000))
    meter.add(900, 90)
    assert meter.reserve(10, 0) is None
    assert "cap of 1,000 tokens" in (meter.reserve(1, 0) or "")


def test_the_ledger_resumes_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run" / "spend.jsonl"
    first = UsageMeter(name="m", budget=Budget(1.0, 1.0))
    first.keep(path)
    first.add(10, 5)
    other = UsageMeter(name="another model")
    other.keep(path)
    other.add(1000, 1000)
    with path.open("a") as file:
        file.write('{"model": "m", "prompt_tok')  # killed in the middle of a line
    second = UsageMeter(name="m", budget=Budget(1.0, 1.0))
    second.keep(path)
    second.add(1, 1)
    assert (second.prompt_tokens, second.completion_tokens) == (11, 6)
    assert len(path.read_text().splitlines()) == 3
    path.write_text("no JSON\n")
    with pytest.raises(UserError, match=r"spend\.jsonl holds a line that is no spending"):
        UsageMeter(name="m").keep(path)


def _spend(path: str) -> int:
    meter = UsageMeter(name="m", budget=Budget(token_cap=4000))
    meter.keep(path)
    while meter.reserve(5, 5) is None:
        meter.settle((5, 5), (5, 5))
    return meter.prompt_tokens


def test_processes_of_one_run_share_the_cap(tmp_path: Path) -> None:
    path = str(tmp_path / "spend.jsonl")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_spend, [path] * 3)
    total = UsageMeter(name="m")
    total.keep(path)
    used = total.prompt_tokens + total.completion_tokens
    assert 3990 <= used <= 4000 + 3 * 10  # a race of one request a process
