"""An engine with scripted replies, and small hand-made trees."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from fgrpo.inference.base import Completion, Request, SamplingError
from fgrpo.types import Sample
from mcts.tree import Node, Outcome, Settings, Tree

SETTINGS = Settings(
    simulations=8,
    c_puct=2.0,
    children=3,
    rollouts=2,
    max_depth=10,
    selection="puct",
    prior="logprob",
    zoom="prompt",
    expand_attempts=3,
    direct_chains=8,
    corrected_chains=2,
    backtrack_cue="Wait, no.",
    seed=0,
)


def settings(**changes: object) -> Settings:
    return replace(SETTINGS, **changes)  # type: ignore[arg-type]


def sample(name: str = "toy/train/1", answer: str = "left") -> Sample:
    return Sample(name, (), f"Is it left or right, {name}?", ("left", "right"), answer)


class ScriptedEngine:
    """A `Sampler` whose text is a pure function of the request; it records requests and can fail.

    By default each step is "Step <n> looks at <bbox>…</bbox>." with a distinct box, and an answer follows after three steps.
    """

    def __init__(self, fails: Callable[[Request], bool] = lambda request: False, lines: int = 3) -> None:
        self._fails, self._lines = fails, lines
        self.requests: list[Request] = []
        self.closed = False

    async def sample(self, request: Request) -> Sequence[Completion]:
        self.requests.append(request)
        await asyncio.sleep(0)
        if self._fails(request):
            raise SamplingError(f"request {request.text!r}: the endpoint is gone")
        return [self._one(request, i) for i in range(request.n)]

    async def close(self) -> None:
        self.closed = True

    def _one(self, request: Request, index: int) -> Completion:
        rng = random.Random(hashlib.sha256(f"{request.seed} {index} {request.prefix}".encode()).digest())
        text = ""
        for _ in range(self._lines + 1):
            written = (request.prefix + text).count("\n")
            if written >= self._lines - 1:
                word = rng.choice(["left", "left", "right"])
                text += f"So it is {word}.</think><answer>{word}</answer>"
                break
            x = rng.randrange(0, 90)
            text += f"Step {written} looks at <bbox>[{x},{written},{x + 10},{written + 9}]</bbox>.\n"
            if "\n" in request.stop:
                break
        ids = tuple(range(len(text) // 4))
        return Completion(text, "stop", ids, tuple(-0.1 - rng.random() for _ in ids))


def node(node_id: str, step: str, *children: Node, answer: str | None = None, ends: Sequence[str] = ()) -> Node:
    """A hand-made node. The answer "left" is right; `ends` are rollout texts, and `…<answer>left</answer>` is right."""
    outcomes = [Outcome(text, text.split("<answer>")[1].split("<")[0], float("<answer>left<" in text)) for text in ends]
    reward = None if answer is None else float(answer == "left")
    return Node(node_id, step, answer, reward, outcomes=outcomes, children=list(children))


def tree(root: Node, **changes: object) -> Tree:
    return Tree(sample(), settings(**changes), root)
