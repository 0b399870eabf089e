"""The synthetic rewards, the formula's rounds, and the tables from fixed inputs."""

from __future__ import annotations

import pytest

from perf.constraints_cost import constraints, formula_ms, formula_table, quartiles, step_table, synthetic
from rewards.base import TASK

TEXTS = [f"text {n}" for n in range(400)]


def test_a_synthetic_reward_is_a_function_of_the_text_and_independent_of_the_others() -> None:
    one, other, task = (synthetic(name)(TEXTS) for name in ("constraint_0", "constraint_1", TASK))
    assert one == synthetic("constraint_0")([[{"role": "assistant", "content": text}] for text in TEXTS])
    assert None not in task and set(task) == {0.0, 1.0}
    for column in (one, other):
        assert set(column) == {0.0, 1.0, None} and 0.3 < column.count(None) / len(TEXTS) < 0.5
    both = [(a, b) for a, b in zip(one, other, strict=True) if None not in (a, b)]
    assert 0.35 < sum(a == b for a, b in both) / len(both) < 0.65


def test_every_count_is_timed_as_often() -> None:
    found = formula_ms((0, 1, 12), rounds=2)
    assert [len(times) for times in found.values()] == [2, 2, 2] and all(min(times) > 0 for times in found.values())
    assert len({c.reward for c in constraints(12)}) == 12


def test_quartiles() -> None:
    assert quartiles([2.0, 4.0, 6.0, 100.0], [2.0, 2.0, 2.0, 2.0]) == "2.500 (2.000–3.000)"
    with pytest.raises(ZeroDivisionError):
        quartiles([1.0], [0.0])


def test_the_tables_have_the_task_alone_as_their_base() -> None:
    assert formula_table({0: [1.0, 2.0], 12: [4.0, 4.0]}) == [
        ("none (task alone)", "1.50", "1.000 (1.000–1.000)"),
        ("12", "4.00", "2.667 (2.000–4.000)"),
    ]
    steps = {0: ([1.0, 1.0], [0.5, 0.5]), 4: ([1.1, 1.1], [0.6, 0.6])}
    assert step_table(steps)[1] == ("4", "1.100 (1.100–1.100)", "1.200 (1.200–1.200)")
