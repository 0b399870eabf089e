"""The search tree of one question, as plain data with a JSON round trip (a line of trees.jsonl).

A state is the sequence of reasoning steps so far, an action one more step (Appendix A.4). In the text a step is a line:
`<think>step\\nstep\\n…last step</think><answer>…</answer>`. The action that closes the trace carries the answer.

Ids are paths of child numbers ("0", "0.2", "0.2.1"), so they do not depend on how the searches of many trees interleave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from fgrpo.response import parse, parse_boxes
from fgrpo.schema import Mcts, Policy
from fgrpo.types import Sample

OPENING = "<think>"
ROOT = "0"
DEFAULT_POLICY = Policy(box_tag="bbox", box_frame="model")  # of trees made without a configuration


@dataclass(frozen=True)
class Settings:
    """What a search and its linearisation depend on; stored with every tree. Meanings: `fgrpo.schema.Mcts`."""

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
    """One simulated completion of a node's state: the text from there to `</answer>`, and its binary reward."""

    text: str
    answer: str | None
    reward: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["text"], data["answer"], data["reward"])


@dataclass
class Node:
    """A state, reached by `step` from its parent (the root's step is empty).

    `answer` is set on terminal nodes only, and `reward` with it. `closed` means that no usable step came here: what the teacher
    gave was refused, or requests failed (the tree's counts say which), and it is not asked for again.
    `visits` and `value_sum` are N(s, a) and the sum of rewards backed up through this node.
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
        """This node and all below it, parents first, children in order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, children nested."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("outcomes", "children")}
        return {
            **out,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "children": [child.to_dict() for child in self.children],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        plain = {k: v for k, v in data.items() if k not in ("outcomes", "children")}
        return cls(
            **plain,
            outcomes=[Outcome.from_dict(item) for item in data["outcomes"]],
            children=[cls.from_dict(item) for item in data["children"]],
        )


@dataclass
class Tree:
    """A question, how it is searched, the tree found, and what the search counted (requests, tokens, rejected steps).

    `last_failure` says in words why the last request failed, and `policy` how boxes are written; neither is stored.
    """

    sample: Sample
    settings: Settings
    root: Node = field(default_factory=lambda: Node(ROOT))
    counts: Counter[str] = field(default_factory=Counter)
    last_failure: str = ""
    policy: Policy = DEFAULT_POLICY

    @property
    def id(self) -> str:
        return self.sample.id

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `id` comes first, and is the sample's."""
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
    """What the teacher has written when it stands at the end of `path` (a node that is not terminal)."""
    return OPENING + "".join(step + "\n" for step in steps_of(path))


@dataclass(frozen=True)
class Chain:
    """A finished reasoning: steps and answer."""

    steps: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """`<think>step\\n…\\nstep</think><answer>…</answer>`."""
        return f"{OPENING}{chr(10).join(self.steps)}</think><answer>{self.answer}</answer>"


def read_chain(text: str) -> Chain | None:
    """The chain in a whole response (its trace split into lines, blank ones left out), None if it is not well formed."""
    response = parse(text)
    if not response.well_formed or response.answer is None:
        return None
    steps = tuple(line.strip() for line in response.think.splitlines() if line.strip())
    answer = " ".join(response.answer.split())
    return Chain(steps, answer) if steps and answer else None
