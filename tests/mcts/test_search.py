"""Search: golden trees replayed step by step, where visits go, what an expansion rejects, and bad teachers."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgrpo.boxes import PixelBounds
from fgrpo.inference.base import SamplingError
from fgrpo.types import Box
from mcts.search import TreeFailed, backup, expand, iterate, rejection_reason, search, seed_of, select
from mcts.teacher import Ending, Step
from mcts.tree import Node, Settings, Tree
from perf.prior import needed, share_of_best
from perf.scripted import ScriptedTeacher
from tests.mcts.golden import GOLDEN, snapshots
from tests.mcts.scripted import sample, settings


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_trees_replay_step_by_step(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert len(stored["trees"]) == stored["settings"]["simulations"]
    again = asyncio.run(snapshots(stored["script"], Settings(**stored["settings"])))
    for number, (old, new) in enumerate(zip(stored["trees"], again, strict=True)):
        assert json.loads(json.dumps(new)) == old, f"iteration {number}"
        assert Tree.from_dict(old).to_dict() == old


def test_the_golden_puct_tree_adds_up() -> None:
    stored = json.loads((GOLDEN / "puct.json").read_text(encoding="utf-8"))
    tree = Tree.from_dict(stored["trees"][-1])
    for node in tree.root.walk():
        below = sum(child.visits for child in node.children)
        own = len(node.outcomes)
        assert node.is_terminal or node.visits == below + own
        assert node.is_terminal or node.value_sum == sum(c.value_sum for c in node.children) + sum(
            o.reward for o in node.outcomes
        )
        if node.children:
            assert sum(child.prior for child in node.children) == pytest.approx(1, abs=1e-5)


def equation_7_scores(children: list[dict[str, Any]], search_settings: dict[str, Any]) -> list[float]:
    """The scores of a stored node's children, computed independently."""
    total, c = sum(child["visits"] for child in children), search_settings["c_puct"]
    out = []
    for child in children:
        n = child["visits"]
        q = child["value_sum"] / n if n else 0.0
        if search_settings["selection"] == "ucb1":
            out.append(q + c * math.sqrt(math.log(total) / n) if n else math.inf)
        else:
            out.append(q + c * child["prior"] * math.sqrt(total) / (1 + n))
    return out


def stored_nodes(root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {root["id"]: root} | {name: one for child in root["children"] for name, one in stored_nodes(child).items()}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_each_golden_iteration_goes_where_eq_7_says_and_backs_up_along_that_path_only(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    empty = Tree(sample(), Settings(**stored["settings"])).to_dict()
    for before, after in zip([empty, *stored["trees"]], stored["trees"], strict=False):
        node, path_ids = before["root"], [before["root"]["id"]]
        while node["children"]:
            scores = equation_7_scores(node["children"], stored["settings"])
            node = node["children"][scores.index(max(scores))]
            path_ids.append(node["id"])
        old, new = stored_nodes(before["root"]), stored_nodes(after["root"])
        new_nodes = [new[name] for name in new if name not in old]
        assert all(one["id"].rpartition(".")[0] == path_ids[-1] for one in new_nodes)
        extended = [new[path_ids[-1]], *new_nodes]
        rewards = [
            o["reward"]
            for one in extended
            for o in one["outcomes"][len(old.get(one["id"], one | {"outcomes": []})["outcomes"]) :]
        ]
        rewards += [one["reward"] for one in (new_nodes or extended) if one["answer"] is not None]
        assert rewards
        for name, one in old.items():
            grown_by = (new[name]["visits"] - one["visits"], new[name]["value_sum"] - one["value_sum"])
            assert grown_by == ((len(rewards), sum(rewards)) if name in path_ids else (0, 0)), name


def test_backup_counts_a_visit_at_every_node_of_the_path() -> None:
    nodes = [Node("0"), Node("0.0"), Node("0.0.1")]
    backup(nodes, 1.0)
    backup(nodes[:2], 0.0)
    assert [(n.visits, n.value) for n in nodes] == [(2, 0.5), (2, 0.5), (1, 1.0)]


def test_visits_concentrate_on_the_best_path() -> None:
    few, more, many = (share_of_best(n) for n in (6, 24, 80))
    assert few < more < many
    assert many > 0.75


def test_an_informative_prior_needs_fewer_simulations_than_ucb1() -> None:
    """Simulations until the tree contains the right answer; `python -m perf.prior` prints the numbers of mcts/README.md."""
    informed, uniform, ucb1 = (needed(0.6, 12, **ways) for ways in ({}, {"prior": "uniform"}, {"selection": "ucb1"}))
    assert informed < 0.7 * uniform
    assert informed < 0.5 * ucb1


def test_an_expansion_requests_missing_steps_again_up_to_a_limit() -> None:
    script = {"": [(0.98, "same"), (0.02, "other")], "same": [(1.0, "s</think><answer>left</answer>")]}
    teacher = ScriptedTeacher(script)
    tree = Tree(sample(), settings(expand_attempts=3, seed=3))
    children = asyncio.run(expand(tree, [tree.root], teacher))
    assert [child.step for child in children] == ["same"]
    assert children[0].prior == 1.0
    assert teacher.requests == 3 and tree.counts["short_expansions"] == 1
    assert tree.counts["rejected/duplicate"] == tree.counts["completions"] - 1 == 6  # 3, then 2, then 2


def test_an_expansion_rejects_repeated_steps() -> None:
    box, line = "<bbox>[0,0,10,10]</bbox>", Node("0.0", "The cat is at <bbox>[0,0,10,10]</bbox>.")
    path = [Node("0"), line]

    def of(text: str, answer: str | None = None) -> Step:
        return Step(text, answer, 0.0, 1)

    assert rejection_reason(of("A dog."), path, [of("A  dog.")]) == "duplicate"
    assert rejection_reason(of("A dog.", "left"), path, [of("A dog.", "right")]) is None
    assert rejection_reason(of(line.step), path, []) == "repeated_text"
    assert rejection_reason(of(f"Still at {box}."), path, []) == "repeated_box"
    assert rejection_reason(of("Now <bbox>[0, 0, 10, 10]</bbox>."), path, []) == "repeated_box"
    assert rejection_reason(of("Zoom to <bbox>[0,0,5,5]</bbox>."), path, []) is None


def test_the_progressive_zoom_is_enforced_where_the_configuration_says_so() -> None:
    path = [Node("0"), Node("0.0", "All <bbox>[0,0,100,100]</bbox>."), Node("0.0.0", "I think.")]
    path.append(Node("0.0.0.0", "Here <bbox>[0,0,20,10]</bbox> and <bbox>[0,0,2,2]</bbox>."))

    def refused(text: str, zoom: str) -> str | None:
        return rejection_reason(Step(text, None, 0.0, 1), path, [], zoom)

    wider, equal = "There <bbox>[50,50,70,61]</bbox>.", "There <bbox>[50,50,70,60]</bbox>."
    assert [refused(t, "strict") for t in (wider, equal, "So it is left.")] == ["zoomed_out", None, None]
    assert refused(wider, "prompt") is None
    assert (
        rejection_reason(Step(wider, None, 0.0, 1), path[:1], [], "strict") is None
    )  # the first region may have any size
    tree = Tree(sample(), settings(zoom="strict", seed=1))
    script = {
        "": [(1.0, "Small <bbox>[0,0,5,5]</bbox>")],
        "Small <bbox>[0,0,5,5]</bbox>": [(1.0, "All <bbox>[0,0,9,9]</bbox>")],
    }
    script["All <bbox>[0,0,9,9]</bbox>"] = [(1.0, "So left.</think><answer>left</answer>")]
    asyncio.run(search(tree, ScriptedTeacher(script)))
    assert [node.step for node in tree.root.walk()] == ["", "Small <bbox>[0,0,5,5]</bbox>"]
    assert tree.counts["rejected/zoomed_out"] == 9 and tree.root.children[0].closed


def test_prior_is_the_softmax_of_log_probabilities_or_uniform() -> None:
    script = {"": [(0.64, "x"), (0.32, "y"), (0.04, "z")]}
    for prior, expected in (("logprob", 0.8 / (0.8 + 0.32**0.5 + 0.2)), ("uniform", 1 / 3)):
        tree = Tree(sample(), settings(prior=prior, expand_attempts=40))
        children = asyncio.run(expand(tree, [tree.root], ScriptedTeacher(script)))
        by_step = {child.step: child.prior for child in children}
        assert by_step["x"] == pytest.approx(expected, abs=1e-3)


class BrokenTeacher:
    """Fails every k-th request; all its steps are distinct and all its rollouts right."""

    def __init__(self, every: int, problem: str | None = None) -> None:
        self.requests, self.read_tokens = 0, 0
        self._every, self._problem = every, problem

    def _ask(self) -> None:
        self.requests += 1
        if self.requests % self._every == 0:
            raise SamplingError("gone")

    async def steps(self, state: str, n: int, seed: int) -> list[Step]:
        self._ask()
        return [Step(f"s{seed}.{i}", None, -0.5, 4, self._problem) for i in range(n)]

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]:
        self._ask()
        return [Ending("end</think><answer>left</answer>", 3, True)] * n


def test_failed_requests_are_counted_and_back_nothing_up() -> None:
    tree = asyncio.run(search(Tree(sample(), settings()), BrokenTeacher(5)))
    failures = tree.counts["failed/step"] + tree.counts["failed/rollout"]
    assert failures > 0 and tree.root.value == 1.0  # a failure is not a wrong answer
    assert tree.root.visits == sum(len(node.outcomes) for node in tree.root.walk())


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [(BrokenTeacher(1), "3 step"), (BrokenTeacher(10**9, "unended"), "9 unended")],
    ids=["always fails", "never ends a step"],
)
def test_a_question_without_a_first_step_is_a_failed_tree(teacher: BrokenTeacher, reason: str) -> None:
    with pytest.raises(TreeFailed, match=reason):
        asyncio.run(search(Tree(sample(), settings()), teacher))


def test_a_leaf_at_the_depth_limit_is_rolled_out_again_with_another_seed() -> None:
    tree = Tree(sample(), settings(max_depth=1, simulations=4))
    seeds: list[int] = []

    class Spy(BrokenTeacher):
        async def endings(self, state: str, n: int, seed: int) -> list[Ending]:
            seeds.append(seed)
            return await super().endings(state, n, seed)

    asyncio.run(search(tree, Spy(10**9)))
    assert all(not child.children for child in tree.root.children)
    assert tree.root.visits == 3 * 2 + 3 * 2 and len(set(seeds)) == len(seeds) == 6


def test_a_terminal_leaf_backs_its_reward_up_again_without_a_request() -> None:
    tree = Tree(sample(), settings(simulations=5))
    teacher = ScriptedTeacher({"": [(1.0, "It is left.</think><answer>left</answer>")]})
    asyncio.run(search(tree, teacher))
    assert (tree.root.visits, tree.root.value, teacher.requests) == (5, 1.0, 3)
    assert select(tree)[-1].answer == "left"


def test_seeds_depend_on_all_their_parts_and_fit_31_bits() -> None:
    seeds = {
        seed_of(s, a, n, k, t)
        for s in (0, 1)
        for a in "ab"
        for n in ("0", "0.1")
        for k in ("step", "rollout")
        for t in (0, 1)
    }
    assert len(seeds) == 32 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(0, "sat/train/1", "0.1", "step", 0) == seed_of(0, "sat/train/1", "0.1", "step", 0)


def test_boxes_are_read_with_the_configured_tag(tmp_path: Path) -> None:
    """The search refuses repeated boxes, counts zooms and shows boxes by `policy.box_tag` and `policy.box_frame`."""
    from fgrpo.schema import Policy
    from mcts import report, viewer

    script = {"": [(1.0, "A <box>[0,0,500,500]</box>")]}
    script["A <box>[0,0,500,500]</box>"] = [(1.0, "Again <box>[0,0,500,500]</box>")]
    counts = []
    for policy in (Policy(box_tag="box", box_frame="thousand"), Policy(box_tag="bbox", box_frame="model")):
        tree = Tree(sample(), settings(children=1, rollouts=0, simulations=2), policy=policy)
        asyncio.run(iterate(tree, ScriptedTeacher(script)))
        asyncio.run(iterate(tree, ScriptedTeacher(script)))
        tally = report.Tally()
        tally.add(tree, [])
        counts.append((tree.counts["rejected/repeated_box"] > 0, tally.counts["steps/boxed"] > 0))
        assert tree.to_dict()["settings"] == asdict(tree.settings), "the policy is the configuration's, not the tree's"
        if policy.box_tag == "box":
            assert viewer.boxes_of(tree) == [Box(0, 0, 500, 500, "thousand")]
    assert counts == [(True, True), (False, False)]
    path = tmp_path / "x.png"
    Image.new("RGB", (112, 112)).save(path)
    for bounds, seen in ((PixelBounds(784, 12544, 28), 112), (PixelBounds(784, 3136, 28), 56)):
        boxes = [Box(0, 0, 500, 500, "thousand"), Box(0, 0, 28, 28, "model")]
        half, corner = viewer._embedded_image(str(path), boxes, bounds)["boxes"]
        assert (half["width"], half["height"]) == (seen / 2, seen / 2)  # of the pixels that the model sees
        assert (corner["width"], corner["height"]) == (28, 28)
