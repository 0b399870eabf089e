"""Tree search over a teacher (Appendix A.4): selection, expansion, simulation and backup, each a function of its own.

One iteration descends from the root by PUCT (Eq. 7; or UCB1) to a leaf, asks the teacher for distinct next steps, rolls each
new child out to an answer, and backs every binary reward up to the root: one rollout, one visit. The reward is strict
matching of the closed answer with the gold option (`rewards.task.matches`), never a substring.

Ours, where the paper is silent: a terminal leaf that is selected again backs its known reward up again; a leaf at the depth
limit, or one for which the teacher has no usable step, is rolled out again; a rollout without an answer has reward 0; a
request that failed is counted and backs nothing up. The progressive zoom is asked for in the teacher's prompt and measured
(report.md); `mcts.zoom: strict` also refuses a step that looks at a larger region than the one before it. Every request has a seed made of (seed, sample, node, kind, attempt).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from fgrpo.inference.base import SamplingError
from fgrpo.response import parse, parse_boxes
from mcts.puct import puct, softmax, ucb1
from mcts.teacher import Ending, Step, Teacher
from mcts.tree import Node, Outcome, Settings, Tree, largest_area, state_text, steps_of
from rewards.task import matches

MAX_FAILED_REQUESTS = 0.5  # past this share of its requests a tree is no tree


class TreeFailed(RuntimeError):
    """A question that could not be searched; says why."""


async def search(tree: Tree, teacher: Teacher) -> Tree:
    """Run `settings.simulations` iterations on `tree`, which is changed and returned.

    Raises:
        TreeFailed: no usable first step, or more than half of the requests failed.
    """
    for _ in range(tree.settings.simulations):
        await iterate(tree, teacher)
        if tree.root.closed:
            last = f"; the last failure: {tree.last_failure}" if tree.last_failure else ""
            raise TreeFailed(f"no usable first step: {_reasons(tree)}{last}")
    failed = sum(n for name, n in tree.counts.items() if name.startswith("failed/"))
    if failed > MAX_FAILED_REQUESTS * tree.counts["requests"]:
        raise TreeFailed(f"{failed} of {tree.counts['requests']} requests failed; the last one: {tree.last_failure}")
    return tree


async def iterate(tree: Tree, teacher: Teacher) -> None:
    """One iteration: select, expand, simulate, back up."""
    path = select(tree)
    leaf = path[-1]
    if leaf.reward is not None:
        backup(path, leaf.reward)
        return
    asked, read = teacher.requests, teacher.read_tokens
    if len(path) - 1 < tree.settings.max_depth and not leaf.closed:
        leaf.children = await expand(tree, path, teacher)
        leaf.closed = not leaf.children
    new = [[*path, child] for child in leaf.children] or ([path] if leaf is not tree.root else [])
    found = await asyncio.gather(*(simulate(tree, below, teacher) for below in new))
    for below, outcomes in zip(new, found, strict=True):  # in the children's order, whichever finished first
        below[-1].outcomes += outcomes
        end = below[-1].reward
        for reward in [o.reward for o in outcomes] if end is None else [end]:
            backup(below, reward)
    tree.counts["requests"] += teacher.requests - asked
    tree.counts["read_tokens"] += teacher.read_tokens - read


def select(tree: Tree) -> list[Node]:
    """The path from the root to a leaf that takes the child of highest score at every node (the first of equals)."""
    path = [tree.root]
    while path[-1].children:
        children = path[-1].children
        scores = selection_scores(children, tree.settings)
        path.append(children[max(range(len(children)), key=scores.__getitem__)])
    return path


def selection_scores(children: Sequence[Node], settings: Settings) -> list[float]:
    """Eq. 7 (or UCB1) for the children of one node, in order."""
    total = sum(child.visits for child in children)
    if settings.selection == "ucb1":
        return [ucb1(child.value, child.visits, total, settings.c_puct) for child in children]
    return [puct(child.value, child.prior, child.visits, total, settings.c_puct) for child in children]


async def expand(tree: Tree, path: Sequence[Node], teacher: Teacher) -> list[Node]:
    """New children of the path's end: at most `settings.children`, distinct, asked for in a bounded number of rounds.

    Priors are the softmax of the children's mean token log-probabilities, or equal. What is left out, and why, is in
    `tree.counts`. An empty list means that the teacher has no usable step here.
    """
    settings, parent = tree.settings, path[-1]
    kept: list[Step] = []
    for attempt in range(settings.expand_attempts):
        missing = settings.children - len(kept)
        seed = seed_of(settings.seed, tree.id, parent.id, "step", attempt)
        try:
            proposed = await teacher.steps(state_text(path), missing, seed)
        except SamplingError as error:
            tree.counts["failed/step"] += 1
            tree.last_failure = str(error)
            continue
        for step in proposed:
            tree.counts["completions"] += 1
            tree.counts["tokens"] += step.tokens
            problem = step.problem or fault(step, path, kept, settings.zoom, tree.policy.box_tag)
            if problem is None:
                kept.append(step)
            else:
                tree.counts[f"rejected/{problem}"] += 1
        if len(kept) == settings.children:
            break
    else:
        tree.counts["short_expansions"] += 1
    priors = softmax([step.logprob if settings.prior == "logprob" else 0.0 for step in kept])
    return [
        Node(f"{parent.id}.{i}", step.text, step.answer, _reward(tree, step.answer), round(prior, 6), step.logprob)
        for i, (step, prior) in enumerate(zip(kept, priors, strict=True))
    ]


def fault(
    step: Step, path: Sequence[Node], siblings: Sequence[Step], zoom: str = "prompt", box_tag: str = "bbox"
) -> str | None:
    """Why a proposed step may not become a child: `duplicate`, `repeated_text`, `repeated_box`, `zoomed_out`; None if it may.

    `zoomed_out` exists where `zoom` is "strict": its largest box is larger than that of the last step that named one.
    """
    key = _plain(step.text)
    if any(_plain(other.text) == key and other.answer == step.answer for other in siblings):
        return "duplicate"
    earlier = steps_of(path)
    if any(_plain(line) == key for line in earlier):
        return "repeated_text"
    seen = {tuple(box) for line in earlier for box in parse_boxes(line, box_tag=box_tag)[0]}
    if any(tuple(box) in seen for box in parse_boxes(step.text, box_tag=box_tag)[0]):
        return "repeated_box"
    if zoom == "strict" and (area := largest_area(step.text, box_tag)) is not None:
        before = next((a for line in reversed(earlier) if (a := largest_area(line, box_tag)) is not None), None)
        if before is not None and area > before:
            return "zoomed_out"
    return None


async def simulate(tree: Tree, path: Sequence[Node], teacher: Teacher) -> list[Outcome]:
    """`settings.rollouts` completions of the path's end, scored; none for a terminal node or a request that failed."""
    node = path[-1]
    if node.is_terminal:
        return []
    seed = seed_of(tree.settings.seed, tree.id, node.id, "rollout", len(node.outcomes))
    state = state_text(path)
    try:
        endings = await teacher.endings(state, tree.settings.rollouts, seed)
    except SamplingError as error:
        tree.counts["failed/rollout"] += 1
        tree.last_failure = str(error)
        return []
    return [_outcome(tree, state, ending) for ending in endings]


def backup(path: Sequence[Node], reward: float) -> None:
    """Add one visit and its reward to every node of the path."""
    for node in path:
        node.visits += 1
        node.value_sum += reward


def seed_of(seed: int, sample_id: str, node_id: str, kind: str, attempt: int) -> int:
    """A request's seed, in [0, 2^31): the same whatever the order in which trees are searched."""
    text = "\n".join((str(seed), sample_id, node_id, kind, str(attempt)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _outcome(tree: Tree, state: str, ending: Ending) -> Outcome:
    answer = parse(state + ending.text).answer
    reward = _reward(tree, answer) or 0.0
    tree.counts["completions"] += 1
    tree.counts["tokens"] += ending.tokens
    tree.counts["rollouts/" + _kind(answer, reward, ending)] += 1
    return Outcome(ending.text, answer, reward)


def _kind(answer: str | None, reward: float, ending: Ending) -> str:
    if answer is None:
        return "no_answer" if ending.finished else "unended"
    return "correct" if reward else "wrong"


def _reward(tree: Tree, answer: str | None) -> float | None:
    if answer is None:
        return None
    return float(matches(answer, tree.sample.answer, tree.sample.choices))


def _reasons(tree: Tree) -> str:
    found = {name: n for name, n in sorted(tree.counts.items()) if name.startswith(("rejected/", "failed/"))}
    return ", ".join(f"{n} {name.split('/')[1].replace('_', ' ')}" for name, n in found.items())


def _plain(text: str) -> str:
    return " ".join(text.split())
