"""How real models write: answers, steps of a search, and verdicts, each a function of what was asked and of a random generator.

Letters are drawn, not known: nothing here sees the picture. `ANSWERS` are a policy's or a baseline's replies, `STEPS` a
teacher's continuations up to a line break, `VERDICTS` a judge's reply to a JSON schema.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFUSAL = "I'm sorry, but I can't identify people in images."


@dataclass(frozen=True)
class Written:
    """A reply. `finish` as the API has it; `reasoning` is what a reasoning parser would take out of the text."""

    text: str
    finish: str = "stop"
    reasoning: str = ""


Writer = Callable[[str, str, random.Random], Written]  # (letter, its option's text, generator)


def box(rng: random.Random, top: int = 400) -> list[int]:
    """Four integers x1 < x2, y1 < y2 below `top` + 101."""
    x, y = rng.randrange(top), rng.randrange(top)
    return [x, y, x + rng.randrange(10, 100), y + rng.randrange(10, 100)]


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(str(number) for number in numbers)


def _own(letter: str, option: str, rng: random.Random) -> Written:
    step = f"The first object is at <bbox>[{_joined(box(rng))}]</bbox>.\nThe second is at <bbox>[{_joined(box(rng))}]</bbox>."
    return Written(f"<think>{step}\nTherefore the answer is {option}.</think><answer>{letter}</answer>")


def _json_boxes(letter: str, option: str, rng: random.Random) -> Written:
    found = json.dumps([{"bbox_2d": box(rng), "label": "object"}, {"bbox_2d": box(rng), "label": "other object"}])
    return Written(f"<think>\n```json\n{found}\n```\nThe first one is {option}.\n</think>\n\n<answer>{letter}</answer>")


def _bare_boxes(letter: str, option: str, rng: random.Random) -> Written:
    return Written(
        f"<think>The object at [{_joined(box(rng))}] lies {option} from {box(rng)}.</think> <answer>{letter}. {option}</answer>"
    )


def _box_tag(letter: str, option: str, rng: random.Random) -> Written:
    return Written(
        f"<think>The object <box>[{_joined(box(rng))}]</box> is seen first. So {option}.</think>\n<answer>{letter}</answer>"
    )


def _markdown(letter: str, option: str, rng: random.Random) -> Written:
    return Written(
        f"### Step 1: Locate the objects\n\n- **Object 1**: around ({rng.randrange(600)}, {rng.randrange(400)})\n"
        f"- **Object 2**: in the background\n\n### Step 2: Compare\n\nIt is **{option}**.\n\n**Answer:** {letter}"
    )


def _fenced(letter: str, option: str, rng: random.Random) -> Written:
    return Written("```json\n" + json.dumps({"reasoning": f"It looks {option}.", "answer": letter}, indent=2) + "\n```")


def _chinese(letter: str, option: str, rng: random.Random) -> Written:
    return Written(
        f"<think>首先看图中的物体 <bbox>[{_joined(box(rng))}]</bbox>。\n因此答案是 {option}。</think><answer>{letter}</answer>"
    )


def _unit_boxes(letter: str, option: str, rng: random.Random) -> Written:
    unit = [round(number / 1000, 3) for number in box(rng)]
    return Written(f"<think>I see it at <bbox>[{_joined(unit)}]</bbox>: {option}.</think><answer>({letter})</answer>")


def _letter(letter: str, option: str, rng: random.Random) -> Written:
    return Written(letter)


def _sentence(letter: str, option: str, rng: random.Random) -> Written:
    return Written(f"Looking at the image, the correct option is ({letter}) {option}.")


def _boxed(letter: str, option: str, rng: random.Random) -> Written:
    return Written(f"The object is closer to the camera, hence {option}.\n\n\\[ \\boxed{{{letter}}} \\]")


def _apart(letter: str, option: str, rng: random.Random) -> Written:
    return Written(f"\n\n<answer>{letter}</answer>", reasoning=f"Okay, let me look. It should be {option}.")


def _cut_off(letter: str, option: str, rng: random.Random) -> Written:
    return Written("<think>Let me look at the image again. " * 4 + f"Maybe {option}, or", "length")


def _refusal(letter: str, option: str, rng: random.Random) -> Written:
    return Written(REFUSAL)


ANSWERS: Mapping[str, tuple[int, Writer]] = {  # weight, writer
    "own form": (6, _own), "JSON boxes": (1, _json_boxes), "bare boxes": (1, _bare_boxes), "box tag": (1, _box_tag),
    "Markdown": (1, _markdown), "fenced JSON": (1, _fenced), "Chinese": (1, _chinese), "unit boxes": (1, _unit_boxes),
    "letter": (1, _letter), "sentence": (1, _sentence), "boxed": (1, _boxed), "reasoning apart": (1, _apart),
    "cut off": (1, _cut_off), "refusal": (1, _refusal),
}  # fmt: skip


def answer(letter: str, option: str, rng: random.Random) -> tuple[str, Written]:
    """(name of the style, reply)."""
    (name,) = rng.choices(list(ANSWERS), weights=[weight for weight, _ in ANSWERS.values()])
    return name, ANSWERS[name][1](letter, option, rng)


# --- the teacher of a search -----------------------------------------------------------------------------------------
STEPS: Mapping[str, tuple[int, Callable[[random.Random], str]]] = {
    "own form": (9, lambda rng: f"The region <bbox>[{_joined(box(rng))}]</bbox> shows an object of interest.\n"),
    "heading": (1, lambda rng: "### Step 1: Identify the main region\n"),
    "bold": (1, lambda rng: f"**Step**: look at <bbox>[{_joined(box(rng))}]</bbox>, a smaller region.\n"),
    "fence": (1, lambda rng: "```json\n"),
    "JSON box": (1, lambda rng: json.dumps({"bbox_2d": box(rng), "label": "object"}) + "\n"),
    "bare box": (1, lambda rng: f"Look at {box(rng)} more closely.\n"),
    "unit box": (1, lambda rng: f"The region <bbox>[0.12,0.{rng.randrange(10, 40)},0.5,0.9]</bbox> is dark.\n"),
    "outside": (1, lambda rng: f"The region <bbox>[90000,20,90100,{rng.randrange(40, 90)}]</bbox> is far away.\n"),
    "Chinese": (1, lambda rng: f"观察区域 <bbox>[{_joined(box(rng))}]</bbox>。\n"),
    "blank line": (1, lambda rng: "\n"),
}


def steps(prefix: str, letter: str, until_answer: bool, rng: random.Random) -> tuple[list[str], Written]:
    """(names of the styles, continuation) after `prefix`: one step, or all up to the answer; after three lines it ends."""
    text, names = "" if prefix else "<think>", []
    while True:
        if (prefix + text).count("\n") >= 3:
            text += f"So the answer is {letter}.</think><answer>{letter}</answer>"
            return [*names, "answer"], Written(text)
        (name,) = rng.choices(list(STEPS), weights=[weight for weight, _ in STEPS.values()])
        names.append(name)
        text += STEPS[name][1](rng)
        if not until_answer:
            return names, Written(text)


# --- judges ----------------------------------------------------------------------------------------------------------
def _verdict(schema: Mapping[str, Any], rng: random.Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema.get("type") == "string":
        return "as seen in the picture"
    return {name: _verdict(part, rng) for name, part in schema["properties"].items()}


# "prose" is unusable and therefore rare: past rl.max_failed_share of failed verdicts a run stops
VERDICTS: Mapping[str, tuple[int, Callable[[str], str]]] = {  # from the JSON
    "JSON": (120, lambda text: text),
    "fenced": (20, lambda text: f"```json\n{text}\n```"),
    "think block": (10, lambda text: f"<think>\nLet me check.\n</think>\n\n{text}"),
    "end of turn": (10, lambda text: f"{text}<|im_end|>"),
    "prose": (1, lambda text: f"Here is my verdict:\n{text}\nI hope this helps!"),
}


def verdict(schema: Mapping[str, Any], rng: random.Random) -> tuple[str, Written]:
    """(name of the style, reply) to a JSON schema."""
    (name,) = rng.choices(list(VERDICTS), weights=[weight for weight, _ in VERDICTS.values()])
    return name, Written(VERDICTS[name][1](json.dumps(_verdict(schema, rng))))
