"""The client with one step per request: its count of requests, what it asks, and trees lost to faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perf.common import ratio, spread
from perf.endpoint import Endpoint
from perf.faults import KINDS, Faults
from perf.peers_search import FAULTS, Pattern, Round, one_step_client, one_step_search, table

SHORT = Pattern(simulations=2)
ANSWER = "</think><answer>left</answer>"


def answers_after(steps: int, asked: list[tuple[str, bool]]) -> Any:
    """A teacher that writes `steps` lines, then the answer."""

    def ask(text: str, is_last: bool) -> str:
        asked.append((text, is_last))
        return ANSWER if is_last or text.count("\n") >= steps else f"step {text.count(chr(10))}\n"

    return ask


def test_an_expansion_is_a_request_per_child_and_a_rollout_a_request_per_step() -> None:
    asked: list[tuple[str, bool]] = []
    root = one_step_search(answers_after(2, asked), Pattern(simulations=1))
    assert len(asked) == 3 + 3 * 2 * 2  # three children; two rollouts of each: a second step and the answer
    assert [text for text, _ in asked[:3]] == [""] * 3
    assert asked[3:5] == [("step 0\n", False), ("step 0\nstep 1\n", False)]
    assert root.visits == 6 and root.value == 1.0 and [child.visits for child in root.children] == [2, 2, 2]


def test_terminal_leaves_cost_no_request() -> None:
    asked: list[tuple[str, bool]] = []
    root = one_step_search(answers_after(0, asked), Pattern(simulations=4))
    assert len(asked) == 3 and root.visits == 6 + 3


def test_the_last_step_of_a_rollout_is_forced_to_answer() -> None:
    asked: list[tuple[str, bool]] = []
    one_step_search(answers_after(99, asked), Pattern(simulations=1, children=1, rollouts=1, rollout_steps=3))
    assert [is_last for _, is_last in asked] == [False, False, False, True]
    asked.clear()
    one_step_search(answers_after(99, asked), Pattern(simulations=1, children=1, rollouts=1, depth=2))
    assert [is_last for _, is_last in asked] == [False, True]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (28, 28), "white").save(path)
    return path


def test_over_http_the_endpoint_serves_as_many_requests_whatever_the_number_of_workers(image: Path) -> None:
    served = []
    for workers in (1, 2):
        with Endpoint(4, 0.0) as endpoint:
            assert one_step_client(endpoint.url, 2, image, 30.0, workers, SHORT) == {"grown": 2}
            assert endpoint.most <= workers
            served.append(endpoint.served)
    assert served[0] == served[1] > 2 * (3 + 3 * 2)


def test_a_reply_that_is_no_json_loses_the_tree_and_the_worker_goes_on(image: Path) -> None:
    with Endpoint(4, 0.0, faults=Faults(0.006, ("page",), seed=1)) as endpoint:
        outcomes = one_step_client(endpoint.url, 3, image, 30.0, 1, SHORT)
        assert outcomes["grown"] == 3 - endpoint.lost and 0 < endpoint.lost < 3
    assert sum(outcomes.values()) == 3


def test_faults_are_drawn_in_turn_and_by_share() -> None:
    drawn = [Faults(0.3).draw() for _ in range(1)] + [
        fault for f in [Faults(0.3)] for fault in (f.draw() for _ in range(2000))
    ]
    again = Faults(0.3)
    assert drawn[1:] == [again.draw() for _ in range(2000)]
    faulty = [fault for fault in drawn[1:] if fault]
    assert abs(len(faulty) / 2000 - 0.3) < 0.03 and set(faulty) == set(KINDS)
    assert Faults(0.0).draw() is None


def test_the_table_has_ratios_to_the_first_row_with_their_spread() -> None:
    found = {
        ("theirs", 0.0): [Round(10, 10, 1000, 1000, 360.0), Round(10, 10, 1020, 1020, 300.0)],
        ("ours", 0.0): [Round(10, 10, 320, 720, 90.0), Round(10, 10, 320, 720, 100.0)],
        ("theirs", FAULTS): [Round(10, 0, 130, 130, 50.0), Round(10, 1, 150, 150, 50.0)],
    }
    assert table(found) == [
        ("theirs", "110", "1.00 (1.00–1.00)", "101.0 (100.0–102.0)", "101.0", "0 of 20"),
        ("ours", "380", "3.45 (3.00–4.00)", "32.0 (32.0–32.0)", "72.0", "0 of 20"),
        ("theirs, 30% faults", "36", "0.33 (0.00–0.60)", "14.0 (13.0–15.0)", "14.0", "19 of 20"),
    ]


def test_ratio_and_spread() -> None:
    assert spread([2.0], ".1f") == "2.0" and spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0–3.0)"
    assert ratio([4.0], [2.0]) == "2.00" and ratio([1.0, 2.0], [0.0, 1.0]) == ratio([], []) == "–"
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])
