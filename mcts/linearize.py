"""From a search tree to training traces (Appendix A.4): direct chains, and chains that go wrong, notice it, and turn.

A direct chain is a path from the root to a correct answer, through tree nodes alone or on through a rollout. A corrected
chain goes down a wrong branch, says the cue on a line of its own, and takes a right branch from the same parent. Of each kind
the shortest are kept (steps, then characters, then the order in which the search found them).

Ours, where the paper is silent: a branch is wrong when nothing below it was right, be it well formed or not; its answer is left out; branches
differ in their first step; a chain that says a line twice (outside the turn) is no chain; equal texts are kept once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fgrpo.types import Trace
from mcts.teacher import is_plain
from mcts.tree import Chain, Node, Tree, read_chain, state_text, steps_of

Kind = Literal["direct", "corrected"]


@dataclass(frozen=True)
class Found:
    """A finished reasoning of the tree: its chain, the node it was found at, and whether its answer is right."""

    chain: Chain
    node_id: str
    correct: bool


def linearize(tree: Tree) -> list[Trace]:
    """The tree's traces, direct ones first, in a stable order; each text is one think block and one answer block.

    How many of each kind, and the cue, are the tree's own settings. Trace ids are "<sample>/<kind>-<number>".
    """
    settings = tree.settings
    found = finished(tree)
    direct = [(one.chain, (one.node_id,)) for here in found.values() for one in here if one.correct]
    return [
        *_traces(tree, "direct", shortest(direct, settings.direct_chains)),
        *_traces(tree, "corrected", shortest(corrections(tree, found), settings.corrected_chains)),
    ]


def finished(tree: Tree) -> dict[str, list[Found]]:
    """Every well-formed finished reasoning of the tree, by the id of the node it was found at, parents before children."""
    return {path[-1].id: list(_finished_at(path)) for path in _paths(tree)}


def corrections(tree: Tree, found: Mapping[str, Sequence[Found]]) -> Iterator[tuple[Chain, tuple[str, ...]]]:
    """Every corrected chain: for each parent, each wrong branch's shortest form with each right branch's shortest form.

    Args:
        found: the tree's finished reasonings, as `finished` gives them.
    """
    cue = tree.settings.backtrack_cue
    for path in _paths(tree):
        prefix = tuple(steps_of(path))
        branches = _branches(path[-1], found)
        wrong = [_least(b) for b, is_wrong in branches if b and is_wrong]
        right = [_least(good) for b, _ in branches if (good := [one for one in b if one.correct])]
        for away in wrong:
            for back in right:
                off, on = away.chain.steps[len(prefix) :], back.chain.steps[len(prefix) :]
                if off and on and off[0] != on[0]:
                    chain = Chain((*prefix, *off, cue, *on), back.chain.answer)
                    yield chain, (away.node_id, back.node_id)


def shortest(chains: Iterable[tuple[Chain, tuple[str, ...]]], count: int) -> list[tuple[Chain, tuple[str, ...]]]:
    """The `count` shortest of different text: by steps, then characters, then the order given."""
    ranked = sorted(chains, key=lambda item: _length(item[0]))  # the sort is stable
    kept: dict[str, tuple[Chain, tuple[str, ...]]] = {}
    for chain, nodes in ranked:
        kept.setdefault(chain.text, (chain, nodes))
    return list(kept.values())[:count]


def _paths(tree: Tree) -> Iterator[list[Node]]:
    """The path to every node, parents first."""
    waiting = [[tree.root]]
    while waiting:
        path = waiting.pop()
        yield path
        waiting.extend([*path, child] for child in reversed(path[-1].children))


def _finished_at(path: Sequence[Node]) -> Iterator[Found]:
    """What ends at this node: its own answer, or its rollouts."""
    node = path[-1]
    if node.answer is not None:
        steps = tuple(steps_of(path))
        if steps and _is_sound(steps):
            yield Found(Chain(steps, node.answer), node.id, bool(node.reward))
        return
    state = state_text(path)
    for outcome in node.outcomes:
        chain = read_chain(state + outcome.text)
        if chain is not None and _is_sound(chain.steps):
            yield Found(chain, node.id, bool(outcome.reward))


def _branches(node: Node, found: Mapping[str, Sequence[Found]]) -> list[tuple[list[Found], bool]]:
    """What was found below each branch of a node, each child with its subtree and each rollout from here, and whether it is wrong."""
    below = [
        ([one for deeper in child.walk() for one in found[deeper.id]], _is_wrong(child)) for child in node.children
    ]
    return below if node.is_terminal else [*below, *(([one], not one.correct) for one in found[node.id])]


def _is_wrong(branch: Node) -> bool:
    """No answer and no rollout below was right, also of those that are no chain."""
    return not any(node.reward or any(outcome.reward for outcome in node.outcomes) for node in branch.walk())


def _least(found: Sequence[Found]) -> Found:
    return min(found, key=lambda item: _length(item.chain))


def _length(chain: Chain) -> tuple[int, int]:
    return len(chain.steps), len(chain.text)


def _is_sound(steps: Sequence[str]) -> bool:
    """No line twice, and text that can be given to a model again."""
    return len(set(steps)) == len(steps) and all(is_plain(step) for step in steps)


def _traces(tree: Tree, kind: Kind, chains: Sequence[tuple[Chain, tuple[str, ...]]]) -> Iterator[Trace]:
    for number, (chain, nodes) in enumerate(chains):
        meta = {"nodes": list(nodes), "steps": len(chain.steps)}
        yield Trace(f"{tree.id}/{kind}-{number}", tree.id, kind, chain.text, meta)
