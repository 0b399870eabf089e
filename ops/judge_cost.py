"""What judging costs: tokens read and written, and money at the configured prices (`make plan`)."""

from __future__ import annotations

from fgrpo.inference.budget import Budget
from fgrpo.schema import Judge
from ops.assumptions import Assumptions
from ops.workload import Line


def judge_cost(line: Line, assume: Assumptions, price: float | None) -> str:
    """One line: the cost of a line of judging."""
    assert line.judge is not None
    judge = line.judge
    reads, writes, money = judge_price(line, assume, price)
    if judge.backend != "openai" or not line.calls:
        return f"{line.stage:10} nothing: {'no calls' if not line.calls else f'the backend {judge.backend} calls no model'}"
    counted = (
        f"{reads:,} tokens read, at most {writes:,} written (more for replies that are cut off and requested again)"
    )
    if money is None:
        role = {"judge-rl": "training", "judge-eval": "evaluation", "extract": "extraction"}[line.stage]
        return f"{line.stage:10} {judge.model}: {counted}; set judges.{role}.prompt_price and completion_price for its cost"
    return (
        f"{line.stage:10} {judge.model}: {counted}; at most {money:,.0f} (prices per million: {_prices(judge, price)})"
    )


def judge_price(line: Line, assume: Assumptions, price: float | None) -> tuple[int, int, float | None]:
    """(tokens read, most tokens written, most money) of a line of judging; money is None without prices."""
    assert line.judge is not None
    length = assume["lengths.extract_prompt" if line.stage == "extract" else "lengths.judge_prompt"]
    reads, writes = round(line.calls * length), line.tokens
    if line.judge.backend != "openai" or not line.calls:
        return reads, writes, 0.0
    prices = (line.judge.prompt_price, line.judge.completion_price) if price is None else (0.0, price)
    return reads, writes, Budget(*prices).price(reads, writes)


def _prices(judge: Judge, price: float | None) -> str:
    return f"{judge.prompt_price:g}, {judge.completion_price:g}" if price is None else f"0, {price:g}"
