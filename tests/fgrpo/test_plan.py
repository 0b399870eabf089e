"""The plan restates the paper's volumes."""

from __future__ import annotations

from fgrpo.config import load
from fgrpo.plan import demand


def test_paper_volumes() -> None:
    calls = {line.stage: line.calls for line in demand(load("paper-7b"))}
    assert calls["data"] == 4 * (15700 + 7000 + 13000 + 13000)
    assert calls["mcts"] == 6000 * 8 * 3 * (1 + 2)
    assert calls["sft"] == 6000 * 10 * 3 // 8
    assert calls["rl"] == round(48700 * 3 / 64) * 64 * 5


def test_step_limit_wins_over_epochs() -> None:
    line = next(x for x in demand(load("mini", overrides=["rl.max_steps=7"])) if x.stage == "rl")
    assert line.calls == 7 * 16 * 5
