"""Scripted teachers for the search: a ladder with known probabilities, and text that is a pure function of the request.

Used by the search's benchmarks and its tests. Nothing here knows a model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from mcts.teacher import Ending, Step, read_step

Script = Mapping[str, Sequence[tuple[float, str]]]
DEPTH = 4  # levels of the ladder
STEPS = 3  # lines of a scripted reasoning before its answer
WORDS = ("left", "left", "right")


class ScriptedTeacher:
    """Draws the next line of a state from `script[last line]`; a line that holds `</answer>` ends the reasoning.

    A line's mean log-probability is the log of its probability over its (two) tokens.
    """

    def __init__(self, script: Script) -> None:
        self.script, self.requests, self.read_tokens = script, 0, 0

    async def steps(self, state: str, n: int, seed: int) -> list[Step]:
        """`n` draws of the next line."""
        self.requests += 1
        rng = random.Random(seed)
        out = []
        for _ in range(n):
            share, text = self._draw(state, rng)
            out.append(read_step(state, text, False, round(math.log(share) / 2, 4), 2))
        return out

    async def endings(self, state: str, n: int, seed: int) -> list[Ending]:
        """`n` draws of all lines up to an answer."""
        self.requests += 1
        rng = random.Random(seed)
        out = []
        for _ in range(n):
            text = ""
            while "</answer>" not in text:
                text += self._draw(state + text, rng)[1]
            out.append(Ending(text, text.count("\n") + 1, True))
        return out

    def _draw(self, state: str, rng: random.Random) -> tuple[float, str]:
        last = state.removeprefix("<think>").removesuffix("\n").rsplit("\n", 1)[-1]
        options = self.script[last]
        (chosen,) = rng.choices(options, weights=[share for share, _ in options])
        share, text = chosen
        return share, text if "</answer>" in text else text + "\n"


def ladder(likely: float) -> dict[str, list[tuple[float, str]]]:
    """Level i says "a<i>" (the path) with probability `likely`, else "b<i>" or "c<i>"; only the whole path answers left."""
    off = (1 - likely) / 2
    script: dict[str, list[tuple[float, str]]] = {"": [(likely, "a0"), (off, "b0"), (off, "c0")]}
    for i in range(DEPTH):
        last = i + 1 == DEPTH
        following = [(likely, f"a{i + 1}"), (off, f"b{i + 1}"), (off, f"c{i + 1}")]
        script[f"a{i}"] = [(1.0, "done</think><answer>left</answer>")] if last else following
        for letter in "bc":
            wrong = [(1.0, "done</think><answer>right</answer>")]
            script[f"{letter}{i}"] = wrong if last else [(0.5, f"b{i + 1}"), (0.5, f"c{i + 1}")]
    return script


def write(prefix: str, stop: Sequence[str], seed: int | None, index: int) -> tuple[str, list[float]]:
    """(text, log-probability of each token) of one continuation: three steps with a box each, then an answer.

    Two of three answers are "left". A token is four characters.
    """
    rng = random.Random(f"{seed} {index}")
    text = ""
    while True:
        written = (prefix + text).count("\n")
        if written >= STEPS:
            word = rng.choice(WORDS)
            text += f"So it is {word}.</think><answer>{word}</answer>"
            break
        x = rng.randrange(0, 900)
        text += f"Region {written} is at <bbox>[{x},{written},{x + 50},{written + 50}]</bbox>.\n"
        if "\n" in stop:
            break
    return text, [-0.1 - rng.random() for _ in range(len(text) // 4)]
