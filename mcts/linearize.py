"""Turns a search tree into training traces (Appendix A.4): direct chains, and chains that correct a wrong branch.

A direct chain is a path from the root to a correct answer, through tree nodes only or completed by a rollout. A corrected
chain follows a wrong branch, states the backtracking cue on a line of its own, then takes a right branch from the same parent.
The shortest chains of each kind are kept (fewest steps, then fewest characters, then search order).

Ours, where the paper is silent: a branch is wrong when no answer below it is right, well formed or not. The answer of the
wrong branch is omitted. The two branches differ in their first step. A chain that repeats a line (apart from the cue) is
discarded, and so is one with a line that breaks a rule of steps (`left_out`). Lines of rollouts are repaired as steps are
(`repaired_lines`). Duplicate texts are kept once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fgrpo.types import Trace
from mcts.teacher import is_clean_text
from mcts.tree import Chain, Node, Outcome, Tree, read_chain, state_text, steps_of

Kind = Literal["direct", "corrected"]


@dataclass(frozen=True)
class FinishedChain:
    """A chain with an answer, the node where it ends (or where its rollout starts), and whether the answer is right."""

    chain: Chain
    node_id: str
    correct: bool


def linearize(tree: Tree) -> list[Trace]:
    """The traces of a tree, direct ones first, in a stable order.

    Each text is one think block followed by one answer block. The number of chains per kind and the cue come from
    `tree.settings`. Trace ids are "<sample>/<kind>-<number>".
    """
    settings = tree.settings
    finished = finished_chains(tree)
    direct = [(item.chain, (item.node_id,)) for items in finished.values() for item in items if item.correct]
    return [
        *_traces(tree, "direct", shortest(direct, settings.direct_chains)),
        *_traces(tree, "corrected", shortest(corrected_chains(tree, finished), settings.corrected_chains)),
    ]


def finished_chains(tree: Tree) -> dict[str, list[FinishedChain]]:
    """All well-formed finished chains of the tree by node id, parents before children."""
    return {
        path[-1].id: [item for item in _finished_at(tree, path) if not _broken(tree, item)] for path in _paths(tree)
    }


def left_out(tree: Tree) -> Counter[str]:
    """How many finished chains are left out because a line breaks a rule (`mcts.step_rules`), by the first such rule."""
    if tree.rules is None:
        return Counter()
    broken = (_broken(tree, item) for path in _paths(tree) for item in _finished_at(tree, path))
    return Counter(f"left_out/{problem}" for problem in broken if problem)


def repaired_lines(tree: Tree) -> Counter[str]:
    """How many lines of rollouts lose marks of layout (`mcts.step_rules`), by kind."""
    if tree.rules is None:
        return Counter()
    chains = (chain for path in _paths(tree) for chain, _ in _completed(path))
    return Counter(
        f"repaired_lines/{kind}" for chain in chains for step in chain.steps for kind in tree.rules.repairs(step)[1]
    )


def _broken(tree: Tree, item: FinishedChain) -> str | None:
    """The first rule that a line of a chain breaks."""
    return next((problem for step in item.chain.steps if (problem := tree.problem(step))), None)


def corrected_chains(
    tree: Tree, finished: Mapping[str, Sequence[FinishedChain]]
) -> Iterator[tuple[Chain, tuple[str, ...]]]:
    """All corrected chains with the ids of their two end nodes.

    Each parent combines the shortest chain of each wrong branch with the shortest chain of each right branch.

    Args:
        finished: the output of `finished_chains` for `tree`.
    """
    cue = tree.settings.backtrack_cue
    for path in _paths(tree):
        prefix = tuple(steps_of(path))
        branches = _branches(path[-1], finished)
        wrong_chains = [_shortest_of(items) for items, is_wrong in branches if items and is_wrong]
        right_chains = [_shortest_of(good) for items, _ in branches if (good := [i for i in items if i.correct])]
        for wrong in wrong_chains:
            for right in right_chains:
                wrong_steps, right_steps = wrong.chain.steps[len(prefix) :], right.chain.steps[len(prefix) :]
                if wrong_steps and right_steps and wrong_steps[0] != right_steps[0]:
                    chain = Chain((*prefix, *wrong_steps, cue, *right_steps), right.chain.answer)
                    yield chain, (wrong.node_id, right.node_id)


def shortest(chains: Iterable[tuple[Chain, tuple[str, ...]]], count: int) -> list[tuple[Chain, tuple[str, ...]]]:
    """The `count` shortest chains with distinct texts, sorted by steps, then characters, then input order."""
    ranked = sorted(chains, key=lambda item: _length(item[0]))  # the sort is stable
    unique: dict[str, tuple[Chain, tuple[str, ...]]] = {}
    for chain, nodes in ranked:
        unique.setdefault(chain.text, (chain, nodes))
    return list(unique.values())[:count]


def _paths(tree: Tree) -> Iterator[list[Node]]:
    """The path to every node, parents first."""
    stack = [[tree.root]]
    while stack:
        path = stack.pop()
        yield path
        stack.extend([*path, child] for child in reversed(path[-1].children))


def _finished_at(tree: Tree, path: Sequence[Node]) -> Iterator[FinishedChain]:
    """Chains that end at the last node of `path`: its own answer, or its rollouts, repaired."""
    node = path[-1]
    if node.answer is not None:
        steps = tuple(steps_of(path))
        if steps and _is_valid(steps):
            yield FinishedChain(Chain(steps, node.answer), node.id, bool(node.reward))
        return
    for chain, outcome in _completed(path):
        steps = chain.steps if tree.rules is None else tuple(map(tree.rules.repaired, chain.steps))
        if _is_valid(steps):
            yield FinishedChain(Chain(steps, chain.answer), node.id, bool(outcome.reward))


def _completed(path: Sequence[Node]) -> Iterator[tuple[Chain, Outcome]]:
    """The well-formed chains that the rollouts of the last node of `path` complete, as written."""
    if path[-1].is_terminal:
        return
    state = state_text(path)
    for outcome in path[-1].outcomes:
        chain = read_chain(state + outcome.text)
        if chain is not None:
            yield chain, outcome


def _branches(node: Node, finished: Mapping[str, Sequence[FinishedChain]]) -> list[tuple[list[FinishedChain], bool]]:
    """The finished chains of each branch of `node`, and whether the branch is wrong.

    A branch is a child with its subtree, or one rollout from this node.
    """
    subtrees = [
        ([item for descendant in child.walk() for item in finished[descendant.id]], _is_wrong(child))
        for child in node.children
    ]
    return subtrees if node.is_terminal else [*subtrees, *(([item], not item.correct) for item in finished[node.id])]


def _is_wrong(branch: Node) -> bool:
    """No answer or rollout below is right, including rollouts that are not well-formed chains."""
    return not any(node.reward or any(outcome.reward for outcome in node.outcomes) for node in branch.walk())


def _shortest_of(items: Sequence[FinishedChain]) -> FinishedChain:
    return min(items, key=lambda item: _length(item.chain))


def _length(chain: Chain) -> tuple[int, int]:
    return len(chain.steps), len(chain.text)


def _is_valid(steps: Sequence[str]) -> bool:
    """No line occurs twice, and the text can be fed to a model again."""
    return len(set(steps)) == len(steps) and all(is_clean_text(step) for step in steps)


def _traces(tree: Tree, kind: Kind, chains: Sequence[tuple[Chain, tuple[str, ...]]]) -> Iterator[Trace]:
    for number, (chain, nodes) in enumerate(chains):
        meta = {"nodes": list(nodes), "steps": len(chain.steps)}
        yield Trace(f"{tree.id}/{kind}-{number}", tree.id, kind, chain.text, meta)
