"""Names and meanings that other people's scripts rely on: they stay as written."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = [
    "help",
    "setup",
    "demo",
    "test",
    "test-vllm",
    "check",
    "data",
    "mcts",
    "sft",
    "eval",
    "tables",
    "figures",
    "report",
    "judge-rescore",
    "plan",
    "bench",
    "doctor",
]


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_parser_and_boxes() -> None:
    from fgrpo.boxes import ciou, iou, match
    from fgrpo.response import parse

    response = parse(
        "<think>It is at <bbox>[1,2,30,40]</bbox>, not <bbox>[9,9,1,1]</bbox>.</think><answer> left </answer>"
    )
    assert (response.answer, response.well_formed, [tuple(b) for b in response.boxes]) == (
        "left",
        True,
        [(1, 2, 30, 40)],
    )
    assert iou((0, 0, 2, 2), (0, 0, 2, 4)) == pytest.approx(0.5)
    assert -1.5 < ciou((0, 0, 1, 1), (50, 50, 51, 99)) < 0
    assert match([(0, 0, 1, 1), (5, 5, 6, 6)], [(5, 5, 6, 6)]) == [(1, 0, pytest.approx(1.0))]


def test_rewards_and_extraction() -> None:
    from eval.score import extract_choice
    from rewards.semantic_grounding import sentences
    from rewards.spatial_grounding import score
    from rewards.task import matches

    assert matches("(B)", "right", ("left", "right")) and not matches("not left", "left", ("left", "right"))
    assert extract_choice("the answer is B", ["left", "right"]) == 1
    assert extract_choice("A box stands there", ["box", "lamp"]) == 0
    assert extract_choice("left or right", ["left", "right"]) is None
    assert score([(0, 0, 4, 4)], [(0, 0, 4, 4), (8, 8, 9, 9)], normalise="max") == pytest.approx(0.5)
    assert [s.visual for s in sentences("The red box is left.")] == [True]


def test_advantage_and_dual() -> None:
    import torch

    from rl.advantage import combine
    from rl.dual import Constraint, DualAscent

    parameters = inspect.signature(combine).parameters
    defaults = {name: parameters[name].default for name in ("masked", "baseline", "whiten", "lengths_N")}
    assert defaults == {"masked": "exclude", "baseline": "group", "whiten": "sequence", "lengths_N": None}
    adv_N = combine(torch.tensor([[1.0], [0.0], [math.nan], [math.nan]]), torch.tensor([1.0]), 2, whiten="none")
    assert adv_N.tolist() == pytest.approx([0.7070, -0.7070, 0.0, 0.0], abs=1e-3)
    dual = DualAscent([Constraint("c", 0.95)])
    assert dual.weights() == [1.0, 1.0]
    dual.step(torch.full((8, 1), 0.45))
    assert dual.weights()[1] == pytest.approx(1.0 + 0.05 * 0.5)
    again = DualAscent([Constraint("c", 0.95)])
    again.load_state_dict(dual.state_dict())
    assert again.weights() == dual.weights()


def test_the_trainer_is_a_drop_in() -> None:
    from trl import GRPOTrainer

    from rl.trainer import FaithfulGRPOTrainer

    assert issubclass(FaithfulGRPOTrainer, GRPOTrainer)
    assert {"model", "reward_funcs", "constraints", "args"} <= set(inspect.signature(FaithfulGRPOTrainer).parameters)


def test_search_judges_and_metrics() -> None:
    from eval import metrics
    from judges import Judge
    from mcts.linearize import linearize
    from mcts.puct import puct

    assert list(inspect.signature(puct).parameters) == ["q", "prior", "visits", "parent_visits", "c_puct"]
    assert list(inspect.signature(linearize).parameters) == ["tree"]
    assert inspect.iscoroutinefunction(Judge.judge)
    for name in ("accuracy", "inconsistency_rate", "semantic_grounding", "bootstrap_ci", "mcnemar", "cohen_kappa"):
        assert callable(getattr(metrics, name)), name
