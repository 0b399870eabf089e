"""Steps that are layout, or whose boxes are of another form or place: rejected, repaired, left out, and counted."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fgrpo import box_forms
from fgrpo.boxes import PixelBounds
from fgrpo.config import load
from fgrpo.schema import Policy
from fgrpo.types import Frame, Sample
from mcts import report
from mcts.linearize import finished_chains, left_out, linearize, repaired_lines
from mcts.search import iterate
from mcts.step_rules import StepRules, rules_of
from mcts.tree import Node, Outcome, Tree
from miniworld import questions
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


CASES: dict[str | None, list[str]] = {
    None: [
        GOOD,
        "No region here, and 3 of 4 cups.",
        "A <bbox>[0,0,140,56]</bbox>",
        "A <bbox>[0,0,141,56]</bbox>",  # by less than 1%
        "A <bbox>[0,0,2,2]</bbox>",
        "A <bbox>(1,2),(30,40)</bbox>",
        "The cup (left) and 2 of the tables (3) stand at 3, 4 and 5.",
        f"**{GOOD}**",
        f"### Step 1: {GOOD}",
        f"- {GOOD}",
    ],
    "code_fence": ["```json", "~~~"],
    "rule": ["---"],
    "table": ["| a | b |"],
    "heading": ["### Step 2", "**Step 1: Look closer**", "Step 1:"],
    "bad_box": [
        "A <bbox>[9,9,1,1]</bbox>",
        "A <bbox>[1,2,3]</bbox>",
        "A <bbox>[1,2,3,4]",
        "A <bbox>[10,20,inf,40]</bbox>",
        "A <bbox>[10%,20%,30%,40%]</bbox>",
        "**A <bbox>[9,9,1,1]</bbox>**",
    ],
    "other_form": [
        'A {"bbox_2d": [1, 2, 30, 40]}',
        '{"bbox_2d": [[1, 2], [30, 40]], "label": "cup"}',
        '{"point_2d": [10, 20], "label": "cup"}',
        "A [1, 2, 30, 40]",
        "A (1, 2, 30, 40)",
        "A <box>[1,2,30,40]</box>",
        "A <box>(1,2),(30,40)</box>",
        "A <BBOX>[1,2,30,40]</BBOX>",
        "A [1,2,30,40]</bbox>",
        "A <|box_start|>(1,2),(30,40)<|box_end|>",
        "A <loc10><loc20><loc30><loc40>",
        "A (10,10),(50,50)",
        "A [[10,10],[50,50]]",
        "A <point>[10,20]</point>",
        "A [10,10,50,50,0.9]",
        "A 【10,10,50,50】",
        "A [10 10 50 50]",
        "A at x1=10, y1=10, x2=50, y2=50",
        'A {"x1":10,"y1":10,"x2":50,"y2":50}',
        "The cup at (10, 20) is red.",
        f"{GOOD} Its middle is (25, 25).",
        f"{GOOD} Its box is [1, 2, 30, 40].",
    ],
    "unit_box": [
        "A <bbox>[0.1,0.2,0.5,1.0]</bbox>",
        "A <bbox>[0.1,0.1,1.02,0.5]</bbox>",
        "A <bbox>[0,0,1,1]</bbox>",
        "A <bbox>[0,0,1,1.99]</bbox>",
        f"{GOOD} Beside it <bbox>[0.1,0.2,0.5,0.9]</bbox>.",
    ],
    "outside_box": [
        "A <bbox>[0,0,200,56]</bbox>",
        "A <bbox>[0,0,100,58]</bbox>",
        "A <bbox>[0,-5,100,50]</bbox>",
        f"{GOOD} And <bbox>[0,0,900,50]</bbox>.",
    ],
}


@pytest.mark.parametrize(("problem", "step"), [(problem, step) for problem, steps in CASES.items() for step in steps])
def test_each_rule_has_its_word(step: str, problem: str | None, image: str) -> None:
    assert rules().problem(step, [image]) == problem


@pytest.mark.parametrize("form", [None, "bbox_2d", "box_start", "point_2d", "loc", "bare", "box"])
def test_what_the_reader_of_boxes_sees_outside_the_tag_is_another_form(
    form: str | None, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [] if form is None else [box_forms.Written(0, 1, form, "[10,10,20,20]")]
    monkeypatch.setattr(box_forms, "written", lambda text, tag: seen)
    assert rules().problem("The cup stands on the table.", [image]) == (form and "other_form")


@pytest.mark.parametrize("frame", ["model", "original", "thousand"])
def test_units_of_the_image_are_refused_in_every_frame_but_their_own(frame: Frame, image: str) -> None:
    step = "A <bbox>[0.1,0.1,1.005,0.5]</bbox>"
    assert rules(frame).problem(step, [image]) == "unit_box" and rules("unit").problem(step, [image]) is None


def test_a_box_fits_in_the_frame_of_the_policy(image: str) -> None:
    box = "A <bbox>[0,0,200,100]</bbox>"
    assert rules("original").problem(box, [image]) is None and rules("thousand").problem(box, [image]) is None
    assert rules("thousand").problem("A <bbox>[0,0,1200,100]</bbox>", [image]) == "outside_box"
    assert rules("unit").problem("A <bbox>[0,0,0.5,1]</bbox>", [image]) is None
    assert rules("unit").problem(box, [image]) == "outside_box"
    assert rules().problem(box, []) is None and rules().problem(box, ["missing.png"]) is None  # the engine names it


def grown(image: str, checked: bool) -> Tree:
    """A tree after one iteration over a teacher that writes layout as often as reasoning."""
    question = replace(sample(), images=(image,))
    tree = Tree(question, settings(rollouts=0, expand_attempts=40), rules=rules() if checked else None)
    said = [
        f"1. **{GOOD}**",
        f"# {GOOD}",
        "```json",
        "### Step 1",
        "A <bbox>[0,0,900,50]</bbox>",
        "The table is brown.",
    ]
    asyncio.run(iterate(tree, ScriptedTeacher({"": [(1 / len(said), text) for text in said]})))
    return tree


def test_the_search_rejects_repairs_and_counts_them(image: str) -> None:
    tree = grown(image, checked=True)
    assert {child.step for child in tree.root.children} == {GOOD, "The table is brown."}
    rejected = ("rejected/code_fence", "rejected/heading", "rejected/outside_box")
    for kind in (*rejected, "repaired/heading", "repaired/number", "repaired/emphasis"):
        assert tree.counts[kind] > 0
    assert tree.counts["repaired/number"] == tree.counts["repaired/emphasis"] and not tree.counts["repaired/bullet"]
    tally = report.Tally()
    tally.add(tree, [])
    page = report.write(tally, {})
    assert f"| outside_box | {tree.counts['rejected/outside_box']:,} |" in page and "## Repaired step proposals" in page
    for kind in ("heading", "number", "emphasis"):
        assert f"| {kind} | {tree.counts[f'repaired/{kind}']:,} |" in page.split("## Repaired step proposals")[1]


def test_without_rules_steps_stay_as_written(image: str) -> None:
    tree = grown(image, checked=False)
    assert (
        len(tree.root.children) == 3
        and {child.step[0] for child in tree.root.children} & set("1#`")
        and not any(name.startswith("repaired/") for name in tree.counts)
    )


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


def test_lines_of_rollouts_are_repaired_as_steps_are(image: str) -> None:
    endings = ["2. **The table is left.**\n- So left.", "Step 2: So left.", "So left."]
    outcomes = [Outcome(f"{text}</think><answer>left</answer>", "left", 1.0) for text in endings]
    root = Node("0", children=[Node("0.0", GOOD, outcomes=outcomes)])
    tree = Tree(Sample("a/train/0", (image,), "?", ("left", "right"), "left"), settings(), root, rules=rules())
    texts = [trace.text for trace in linearize(tree)]
    assert texts == [
        f"<think>{GOOD}\n{text}</think><answer>left</answer>" for text in ("So left.", "The table is left.\nSo left.")
    ]
    assert repaired_lines(tree) == {
        f"repaired_lines/{kind}": n for kind, n in (("number", 2), ("emphasis", 1), ("bullet", 1))
    }
    tally = report.Tally()
    tally.add(tree, linearize(tree))
    assert "## Repaired lines of rollouts" in report.write(tally, {})
    tree.rules = None
    assert "**" in "".join(trace.text for trace in linearize(tree)) and not repaired_lines(tree)


def test_real_data_has_rules_and_the_miniature_none() -> None:
    paper = load("paper-7b")
    found = rules_of(paper)
    assert found is not None and found.policy == paper.policy and rules_of(load("mini")) is None


@pytest.mark.parametrize("family", questions.FAMILIES)
def test_the_miniatures_sentences_break_no_rule_and_stay_as_written(family: str) -> None:
    rng, lines = random.Random(0), set()
    for _ in range(60):
        try:
            question = questions.ask(family, questions.scenes_for(family, rng), rng)
        except ValueError:  # a tie
            continue
        lines |= {*questions.steps(question), *(questions.conclusion(question, word) for word in question.choices)}
    assert len(lines) > 20
    for line in lines:
        assert rules().problem(line, []) is None and StepRules.repairs(line) == (line, ()), line
