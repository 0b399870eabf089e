"""Layout in a line of reasoning: what says nothing is named, what says something loses its marks, and prose stays."""

from __future__ import annotations

import itertools

import pytest

from mcts.layout import BULLET, EMPHASIS, HEADING, KINDS, NUMBER, plain, problem
from mcts.step_rules import StepRules

NOTHING = {
    "heading": [
        "Step 1:",
        "Step 1",
        "STEP 2.",
        "Step one:",
        "Step 1 of 3:",
        "Step 1/3",
        "Step 1 (Locate)",
        "1.",
        "2)",
        "(3)",
        "#",
        "###",
        "# Analysis of the image",
        "### Step 2",
        "##Step 1",
        "## Step 1 ##",
        "### 1. Locate",
        "**Step 1: Look closer**",
        "**Conclusion:**",
        "**Final Answer**",
        "* **Car**",
        "- **Step 2:**",
        "***Step 1***",
        "__Step 1__",
        "_Step 1_",
        "*Step 1*",
        "**Step 1",
        "** Step 1 **",
        "<b>Step 1</b>",
        "<strong>Step 1:</strong>",
        "<h2>Step 1</h2>",
        "\\section{Step 1}",
        "\\subsection*{Step 1}",
        "\\textbf{Step 1}",
        "Reasoning:",
        "Final answer:",
        "Reasoning",
        "Step-by-step reasoning:",
        "=== Step 1 ===",
        "--- Reasoning ---",
        "1. **Locate the car**",
        "1. Locate the car",
        "Step 2: Locate the car",
        "> **Step 1**",
        "推理：",
        "第一步",
        "### 步骤1：定位汽车",
        "- [ ] Locate the car",
        "**1.** **Locate the car**",
        "### What the image shows",
        "Looking at the image:",
        "1. Step 1:",
        "Let's analyze the image step by step:",
        "The objects in the image are:",
        "[Reasoning]",
        "`Step 1`",
        "✅ Step 1",
        "🔍 **Step 1: Locate**",
        "Reasoning step 1:",
        "(Step 1)",
        "- Car",
        "\\section*{\\textbf{Step 1}}",
    ],
    "code_fence": [
        "```json",
        "The code ```x``` says so.",
        "~~~",
        "~~~python",
        "'''",
        "\\begin{itemize}",
        "\\end{enumerate}",
    ],
    "rule": [
        "---",
        "***",
        "___",
        "=====",
        "|---|---|",
        "\\[",
        "\\]",
        "$$",
        "{",
        "],",
        "-",
        "*",
        "_",
        "…",
        ":---:|:---:",
        "\\hline",
        "<hr>",
        "<br/>",
        "<div>",
        "</ul>",
        "<!-- note -->",
    ],
    "table": ["| Object | Place |", "| 1 | left |", "| Object | Place", "<tr><td>Car</td></tr>"],
}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in NOTHING.items() for line in lines])
def test_layout_that_says_nothing_is_named(kind: str, line: str) -> None:
    assert problem(line) == kind
    assert StepRules.repairs(line) == (line, ())


SAID = "The car is red."
REPAIRED = [
    (f"**{SAID}**", SAID, [EMPHASIS]),
    (f"**{SAID}**.", SAID, [EMPHASIS]),
    ("**The car is red**.", SAID, [EMPHASIS]),
    ("The car is `red`.", SAID, [EMPHASIS]),
    ("**The car (left)** is red.", "The car (left) is red.", [EMPHASIS]),
    (f"*{SAID}*", SAID, [EMPHASIS]),
    (f"__{SAID}__", SAID, [EMPHASIS]),
    (f"<b>{SAID}</b>", SAID, [EMPHASIS]),
    (f"<p>{SAID}<br>", SAID, [EMPHASIS]),
    (f"\\textbf{{{SAID}}}", SAID, [EMPHASIS]),
    ("**The car at <bbox>[10,10,50,50]</bbox> is red.**", "The car at <bbox>[10,10,50,50]</bbox> is red.", [EMPHASIS]),
    ("**The car** at <bbox>[10,10,50,50]</bbox>", "The car at <bbox>[10,10,50,50]</bbox>", [EMPHASIS]),
    ("The **red** car is *left*, the __blue__ one is right.", "The red car is left, the blue one is right.", [EMPHASIS]),
    ("**3 cars** are red.", "3 cars are red.", [EMPHASIS]),
    ("**3** cars are red.", "3 cars are red.", [EMPHASIS]),
    (f"# {SAID}", SAID, [HEADING]),
    (f"#{SAID}", SAID, [HEADING]),
    (f"## {SAID} ##", SAID, [HEADING]),
    (f"<h3>{SAID}</h3>", SAID, [HEADING]),
    (f"\\paragraph{{{SAID}}}", SAID, [HEADING]),
    ("### Is the car red?", "Is the car red?", [HEADING]),
    ("# 汽车是红色的。", "汽车是红色的。", [HEADING]),
    ("# The red car is left of the tree", "The red car is left of the tree", [HEADING]),
    ("### The car <bbox>[10,10,50,50]</bbox>", "The car <bbox>[10,10,50,50]</bbox>", [HEADING]),
    (f"### Step 1: {SAID}", SAID, [HEADING, NUMBER]),
    *(
        (f"{number}{SAID}", SAID, [NUMBER])
        for number in (
            "1. ", "12. ", "1) ", "(1) ", "1.) ", "1.", "1: ", "#2. ", "1.2. ", "1、", "①", "[1] ", "a) ", "II. ", "2 - ", "Step 2: ",
            "STEP 2. ", "Step 2 - ", "Step 2 – ", "Step two: ", "Step-2: ", "(Step 2) ", "Step 1.1: ", "Step 1 of 3: ", "Step A: ",
            "Step 1 (look closer): ", "Part 2: ", "Observation 1: ", "First step: ", "Step: ", "步骤1：", "第一步：", "1 . ", "1．", "1）", "（1）", "a. ", "(ii) ", "Step 1; ", "Step 1 -> ", "Reasoning 1: ", "Sub-step 1: ",
        )
    ),
    *((f"{bullet}{SAID}", SAID, [BULLET]) for bullet in ("- ", "* ", "+ ", "• ", "•", "-", "– ", "> ", ">", "- [x] ", "→ ", "💡 ", "➡️ ", "▪", "\\item ")),
    (f"**Step 1:** {SAID}", SAID, [NUMBER, EMPHASIS]),
    (f"**Step 1** {SAID}", SAID, [NUMBER, EMPHASIS]),
    (f"**1.** {SAID}", SAID, [NUMBER, EMPHASIS]),
    (f"**Step 1: Locate the car** {SAID}", SAID, [HEADING]),
    ("**Step 1: The car** is red.", SAID, [NUMBER, EMPHASIS]),
    (f"- **{SAID}**", SAID, [BULLET, EMPHASIS]),
    (f"> 1. **{SAID}**", SAID, [BULLET, NUMBER, EMPHASIS]),
    ("1. 3.5 metres lie between them.", "3.5 metres lie between them.", [NUMBER]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text", "kinds"), REPAIRED)
def test_a_line_that_says_something_loses_its_marks(line: str, text: str, kinds: list[str]) -> None:
    assert problem(line) is None
    assert StepRules.repairs(line) == (text, tuple(kinds))


PROSE = [
    "3.5 metres separate the cars.",
    "1990 was the year.",
    "1990. It was new.",
    "3 cars are red.",
    "2 cars. One is red.",
    "1,000 cars are red.",
    "12:30 is the time.",
    "12: 30 is the ratio.",
    "In step 1, the car is red.",
    "After step 2: the car is red.",
    "Image 1: The car is red.",
    "Step 2, which is the highest, is red.",
    "The length |x| is 3.",
    "The car | the tree.",
    "Conclusion: left",
    "First, the car is red.",
    "100 cars are red.",
    "(1) is the left one.",
    "5 - 3 = 2 cars remain.",
    "-5 degrees is cold.",
    "3:15 pm is on the clock.",
    "2 * 3 * 4 = 24 cars.",
    "2**3 = 8 cars.",
    "x*y*z is the product.",
    "The file_name_x is here.",
    "#1 in the list is the cup that stands left of the table.",
    "Step 1 looks at <bbox>[3,0,13,9]</bbox>.",
    "Step 2.5 metres away, the car is red.",
    "I see the car.",
    "A car is left.",
    "So left.",
    "Yes.",
    "Wait, no.",
    "So it is left",
    "The answer is left.",
    "The car <bbox>[1,2,30,40]</bbox>",
    "No region here, and 3 of 4 cups.",
    "1/2 of the cars are red.",
    "2nd from the left is the cup.",
    "Part of the car is red.",
    "首先看图中的物体。",
    "The car is red: it is left of the tree.",
    "The sign reads 'Step 1'.",
]


@pytest.mark.parametrize("line", PROSE)
def test_prose_stays_as_it_is(line: str) -> None:
    assert problem(line) is None
    assert StepRules.repairs(line) == (line, ())


def test_nested_marks_are_all_removed_and_counted() -> None:
    marks = (
        ("# ", "", HEADING),
        ("- ", "", BULLET),
        ("1. ", "", NUMBER),
        ("Step 2: ", "", NUMBER),
        ("**", "**", EMPHASIS),
    )
    for order in itertools.permutations(marks, 3):
        line = SAID
        for before, after, _ in order:
            line = f"{before}{line}{after}"
        text, kinds = StepRules.repairs(line)
        assert (text, set(kinds)) == (SAID, {kind for _, _, kind in order}), line
        assert kinds == tuple(kind for kind in KINDS if kind in kinds)
        assert not plain(text).kinds
