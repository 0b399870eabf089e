"""Steps that are layout, or whose boxes are of another form or place: rejected, repaired, left out, and counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fgrpo.boxes import PixelBounds
from fgrpo.config import load
from fgrpo.schema import Policy
from fgrpo.types import Frame, Sample
from mcts import report
from mcts.linearize import finished_chains, left_out, linearize
from mcts.search import iterate
from mcts.step_rules import StepRules, rules_of
from mcts.tree import Node, Outcome, Tree
from perf.scripted import ScriptedTeacher
from tests.mcts.scripted import sample, settings

BOUNDS = PixelBounds(784, 12544, 28)
GOOD = "The cup <bbox>[0,0,50,50]</bbox> stands on the table."


def rules(frame: Frame = "model") -> StepRules:
    return StepRules(Policy(box_tag="bbox", box_frame=frame), BOUNDS)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "x.png"
    Image.new("RGB", (224, 112)).save(path)  # the model sees 140 x 56
    return str(path)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (GOOD, None),
        ("No region here, and 3 of 4 cups.", None),
        ("```json", "code_fence"),
        ("The code ```x``` says so.", "code_fence"),
        ("### Step 2", "heading"),
        ("# Analysis of the image", "heading"),
        ("#", "heading"),
        ("**Step 1: Look closer**", "heading"),
        ("**Conclusion:**", "heading"),
        ("#1 in the list is the cup that stands left of the table.", None),
        ("A <bbox>[9,9,1,1]</bbox>", "bad_box"),
        ("A <bbox>[1,2,3]</bbox>", "bad_box"),
        ("A <bbox>[1,2,3,4]", "bad_box"),
        ('A {"bbox_2d": [1, 2, 30, 40]}', "other_form"),
        ("A [1, 2, 30, 40]", "other_form"),
        ("A <box>[1,2,30,40]</box>", "other_form"),
        ("A <bbox>[0.1,0.2,0.5,1.0]</bbox>", "unit_box"),
        ("A <bbox>[0,0,140,56]</bbox>", None),
        ("A <bbox>[0,0,141,56]</bbox>", None),
        ("A <bbox>[0,0,200,56]</bbox>", "outside_box"),
        ("A <bbox>[0,-5,100,50]</bbox>", "outside_box"),
    ],
)
def test_each_rule_has_its_word(step: str, problem: str | None, image: str) -> None:
    assert rules().problem(step, [image]) == problem


def test_a_box_fits_in_the_frame_of_the_policy(image: str) -> None:
    box = "A <bbox>[0,0,200,100]</bbox>"
    assert rules("original").problem(box, [image]) is None and rules("thousand").problem(box, [image]) is None
    assert rules("thousand").problem("A <bbox>[0,0,1200,100]</bbox>", [image]) == "outside_box"
    assert rules("unit").problem("A <bbox>[0,0,0.5,1]</bbox>", [image]) is None
    assert rules("unit").problem(box, [image]) == "outside_box"
    assert rules().problem(box, []) is None and rules().problem(box, ["missing.png"]) is None  # the engine names it


def test_a_heading_that_says_something_loses_its_mark() -> None:
    assert (
        StepRules.repaired("## Step 1: the cup stands on the left table.")
        == "Step 1: the cup stands on the left table."
    )
    assert StepRules.repaired(f"# {GOOD}") == GOOD
    assert StepRules.repaired("### Step 2") == "### Step 2" and StepRules.repaired("#1 is first") == "#1 is first"


def grown(image: str, checked: bool) -> Tree:
    """A tree after one iteration over a teacher that writes layout as often as reasoning."""
    question = replace(sample(), images=(image,))
    tree = Tree(question, settings(rollouts=0, expand_attempts=40), rules=rules() if checked else None)
    said = [f"# {GOOD}", "```json", "### Step 1", "A <bbox>[0,0,900,50]</bbox>", "The table is brown."]
    asyncio.run(iterate(tree, ScriptedTeacher({"": [(1 / len(said), text) for text in said]})))
    return tree


def test_the_search_rejects_repairs_and_counts_them(image: str) -> None:
    tree = grown(image, checked=True)
    assert {child.step for child in tree.root.children} == {GOOD, "The table is brown."}
    for kind in ("rejected/code_fence", "rejected/heading", "rejected/outside_box", "repaired/heading"):
        assert tree.counts[kind] > 0
    tally = report.Tally()
    tally.add(tree, [])
    page = report.write(tally, {})
    assert f"| outside_box | {tree.counts['rejected/outside_box']:,} |" in page and "## Repaired step proposals" in page


def test_without_rules_steps_stay_as_written(image: str) -> None:
    tree = grown(image, checked=False)
    assert len(tree.root.children) == 3 and not any(name.startswith("repaired/") for name in tree.counts)


def test_chains_that_a_rollout_completes_by_layout_are_left_out(image: str) -> None:
    endings = ["So left.", "```\nSo left.", "A <bbox>[0,0,900,50]</bbox>\nSo left."]
    outcomes = [Outcome(f"{text}</think><answer>left</answer>", "left", 1.0) for text in endings]
    root = Node("0", children=[Node("0.0", GOOD, outcomes=outcomes)])
    tree = Tree(Sample("a/train/0", (image,), "?", ("left", "right"), "left"), settings(), root, rules=rules())
    assert left_out(tree) == {"left_out/code_fence": 1, "left_out/outside_box": 1}
    (trace,) = linearize(tree)
    assert trace.text == f"<think>{GOOD}\nSo left.</think><answer>left</answer>"
    tally = report.Tally()
    tally.add(tree, [trace])
    assert "Finished chains left out" in report.write(tally, {})
    tree.rules = None
    assert len(finished_chains(tree)["0.0"]) == 3 and not left_out(tree)


def test_real_data_has_rules_and_the_miniature_none() -> None:
    paper = load("paper-7b")
    found = rules_of(paper)
    assert found is not None and found.policy == paper.policy and rules_of(load("mini")) is None
