"""PUCT and UCB1 against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from mcts.puct import puct, softmax, ucb1
from mcts.search import selection_scores
from mcts.tree import Node
from tests.mcts.scripted import settings


def test_puct_by_hand() -> None:
    assert puct(0.5, 0.2, 3, 16, 2.0) == pytest.approx(0.5 + 2 * 0.2 * 4 / 4)
    assert puct(0.0, 0.5, 0, 9, 2.0) == 3.0
    assert puct(0.25, 1.0, 1, 4, 1.0) == pytest.approx(0.25 + 2 / 2)
    assert puct(0.0, 0.7, 0, 0, 2.0) == 0.0  # before any visit the first action wins


def test_ucb1_by_hand() -> None:
    assert ucb1(0.5, 4, 10, 2.0) == pytest.approx(2.017427, abs=1e-6)
    assert ucb1(1.0, 1, 1, 2.0) == 1.0  # ln 1 = 0
    assert ucb1(0.0, 0, 5, 2.0) == math.inf


def test_softmax_by_hand_and_far_from_zero() -> None:
    assert softmax([0.0, math.log(3)]) == pytest.approx([0.25, 0.75])
    assert softmax([-5000.0, -5000.0]) == [0.5, 0.5]
    assert softmax([]) == []


def test_scores_sum_the_childrens_visits_and_not_the_parents() -> None:
    # sum_b N = 4 (the parent itself may have more): 0.5 + 2 * .75 * 2 / 3 = 1.5 and 0 + 2 * .25 * 2 / 3 = 1/3
    children = [Node("0.0", prior=0.75, visits=2, value_sum=1), Node("0.1", prior=0.25, visits=2)]
    assert selection_scores(children, settings()) == pytest.approx([1.5, 1 / 3])
    by_ucb1 = selection_scores(children, settings(selection="ucb1"))
    assert by_ucb1 == pytest.approx([0.5 + 2 * math.sqrt(math.log(4) / 2), 2 * math.sqrt(math.log(4) / 2)])
