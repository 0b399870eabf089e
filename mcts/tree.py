"""The search tree of one question as plain data with a JSON round trip (one line of trees.jsonl).

A state is the sequence of reasoning steps so far; an action adds one step (Appendix A.4). In the text a step is a line:
`<think>step\\nstep\\n…last step</think><answer>…</answer>`. The action that closes the trace carries the answer.

Ids are paths of child indices ("0", "0.2", "0.2.1"), so they do not depend on how searches of different trees interleave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from fgrpo.response import parse, parse_boxes
from fgrpo.schema import Mcts, Policy
from fgrpo.types import Sample
from mcts.step_rules import StepRules

OPENING = "<think>"
ROOT = "0"
DEFAULT_POLICY = Policy(box_tag="bbox", box_frame="model")  # of trees made without a configuration


@dataclass(frozen=True)
class Settings:
    """Settings of a search and its linearization, stored with every tree. `fgrpo.schema.Mcts` documents the fields."""

    simulations: int
    c_puct: float
    children: int
    rollouts: int
    max_depth: int
    selection: Literal["puct", "ucb1"]
    prior: Literal["logprob", "uniform"]
    zoom: Literal["prompt", "strict"]
    expand_attempts: int
    direct_chains: int
    corrected_chains: int
    backtrack_cue: str
    seed: int

    @classmethod
    def of(cls, mcts: Mcts, seed: int) -> Self:
        """The settings of a configuration."""
        names = (name for name in cls.__dataclass_fields__ if name != "seed")
        return cls(**{name: getattr(mcts, name) for name in names}, seed=seed)


@dataclass(frozen=True)
class Outcome:
    """One rollout from a node: the text from its state to `</answer>`, the answer, and the binary reward."""

    text: str
    answer: str | None
    reward: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["text"], data["answer"], data["reward"])


@dataclass
class Node:
    """A state, reached by `step` from its parent (the root's step is empty).

    `answer` and `reward` are set on terminal nodes only. `closed` means that expansion yielded no usable step, because proposals
    were rejected or requests failed (see the tree's counts); the node is not expanded again. `visits` and `value_sum` are N(s, a)
    and the sum of the rewards backed up through this node.
    """

    id: str
    step: str = ""
    answer: str | None = None
    reward: float | None = None
    prior: float = 1.0
    logprob: float | None = None
    visits: int = 0
    value_sum: float = 0.0
    closed: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def value(self) -> float:
        """Q(s, a): the mean reward, 0 before the first visit."""
        return self.value_sum / self.visits if self.visits else 0.0

    @property
    def is_terminal(self) -> bool:
        return self.answer is not None

    def walk(self) -> Iterator[Node]:
        """This node and all its descendants, parents first, children in order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON with nested children."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("outcomes", "children")}
        return {
            **out,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "children": [child.to_dict() for child in self.children],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        scalars = {k: v for k, v in data.items() if k not in ("outcomes", "children")}
        return cls(
            **scalars,
            outcomes=[Outcome.from_dict(item) for item in data["outcomes"]],
            children=[cls.from_dict(item) for item in data["children"]],
        )


@dataclass
class Tree:
    """A question, the settings of its search, the tree, and counts (requests, tokens, rejected steps).

    `last_failure` is the error message of the last failed request, and `lacks_text` whether one never got text. These, `policy`
    and `rules` (what a step may not be) are not stored.
    """

    sample: Sample
    settings: Settings
    root: Node = field(default_factory=lambda: Node(ROOT))
    counts: Counter[str] = field(default_factory=Counter)
    last_failure: str = ""
    lacks_text: bool = False
    policy: Policy = DEFAULT_POLICY
    rules: StepRules | None = None

    def problem(self, step: str) -> str | None:
        """The rule that a step breaks (`mcts.step_rules`); None without rules."""
        return None if self.rules is None else self.rules.problem(step, self.sample.images)

    @property
    def id(self) -> str:
        return self.sample.id

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the first key is `id`, the id of the sample."""
        return {
            "id": self.id,
            "sample_id": self.id,
            "sample": self.sample.to_dict(),
            "settings": asdict(self.settings),
            "counts": dict(sorted(self.counts.items())),
            "root": self.root.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            Sample.from_dict(data["sample"]),
            Settings(**data["settings"]),
            Node.from_dict(data["root"]),
            Counter(data["counts"]),
        )


def steps_of(path: Sequence[Node]) -> list[str]:
    """The reasoning steps along a path from the root; a closing action without a step of its own adds none."""
    return [node.step for node in path if node.step]


def largest_area(step: str, box_tag: str = "bbox") -> float | None:
    """Area of the largest box that a step names, in the units of its frame; None if it names none."""
    boxes, _ = parse_boxes(step, box_tag=box_tag)
    return max(((box.x2 - box.x1) * (box.y2 - box.y1) for box in boxes), default=None)


def state_text(path: Sequence[Node]) -> str:
    """The teacher's text at the last node of `path`, which must not be terminal."""
    return OPENING + "".join(step + "\n" for step in steps_of(path))


@dataclass(frozen=True)
class Chain:
    """A finished chain of reasoning: steps and answer."""

    steps: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """`<think>step\\n…\\nstep</think><answer>…</answer>`."""
        return f"{OPENING}{chr(10).join(self.steps)}</think><answer>{self.answer}</answer>"


def read_chain(text: str) -> Chain | None:
    """The chain of a complete response, with its trace split into non-blank lines; None if it is not well formed."""
    response = parse(text)
    if not response.well_formed or response.answer is None:
        return None
    steps = tuple(line.strip() for line in response.think.splitlines() if line.strip())
    answer = " ".join(response.answer.split())
    return Chain(steps, answer) if steps and answer else None
