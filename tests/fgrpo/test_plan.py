"""The plan restates the paper's volumes."""

from __future__ import annotations

from fgrpo.config import load
from fgrpo.plan import demand, disk, parameters


def test_paper_volumes() -> None:
    calls = {line.stage: line.calls for line in demand(load("paper-7b"))}
    assert calls["data"] == 4 * (15700 + 7000 + 13000 + 13000)
    assert calls["mcts"] == 6000 * 8 * 3 * (1 + 2)
    assert calls["sft"] == 6000 * 10 * 3 // 8
    assert calls["rl"] == round(48700 * 3 / 64) * 64 * 5


def test_step_limit_wins_over_epochs() -> None:
    line = next(x for x in demand(load("mini", overrides=["rl.max_steps=7"])) if x.stage == "rl")
    assert line.calls == 7 * 16 * 5


def test_judges_are_counted_by_what_the_method_asks() -> None:
    def calls(method: str) -> dict[str, int]:
        return {line.stage: line.calls for line in demand(load("paper-7b", method))}

    fgrpo, task_only = calls("fgrpo"), calls("grpo-t")
    assert fgrpo["judge-rl"] == 2 * fgrpo["rl"]  # consistency and semantic grounding
    assert task_only["judge-rl"] == task_only["rl"]  # consistency is monitored
    assert fgrpo["eval"] == 4 * (1438 + 1200 + 1050 + 300 + 1533 + 765 + 300)
    assert fgrpo["judge-eval"] == 2 * fgrpo["eval"]


def test_disk_of_a_trained_stage() -> None:
    config = load("paper-7b")
    assert parameters(config) == 7_000_000_000
    assert f"{7 * (3 * 14 + 2)}.0 GB" in disk(config)  # 2 + 4 + 8 bytes a parameter and checkpoint, 2 in the end
    assert 1e6 < (parameters(load("mini")) or 0) < 1e7
