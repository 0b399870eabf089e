"""Tree search over a teacher (Appendix A.4): selection, expansion, simulation and backup, one function each.

One iteration descends from the root to a leaf by PUCT (Eq. 7; or UCB1), requests distinct next steps from the teacher, rolls
each new child out to an answer, and backs every binary reward up to the root: one visit per rollout. The reward is a strict
match between the closed answer and the gold option (`rewards.task.matches`), never a substring match.

Ours, where the paper is silent: a proposed step that is layout, or whose box is in another form or beyond the image, is
rejected (`mcts.step_rules`). A terminal leaf that is selected again backs up its known reward again. A leaf at the depth
limit, or without a usable next step, is rolled out again. A rollout without an answer has reward 0. A refused request, or one
that never gets text, is counted and backs up nothing. An endpoint that is down for longer than its patience fails the tree, which
would be another one without the missing requests; the next run grows it. The teacher's prompt requests progressive zoom, and
report.md measures it; `mcts.zoom: strict` also rejects a step with a larger region than the step before it. The seed of a
request depends on (seed, sample, node, kind, attempt).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from fgrpo.inference.base import NoText, SamplingError, TransientError
from fgrpo.response import parse, parse_boxes
from mcts.puct import puct, softmax, ucb1
from mcts.teacher import Ending, Step, Teacher
from mcts.tree import Node, Outcome, Settings, Tree, largest_area, state_text, steps_of
from rewards.task import matches

MAX_FAILED_REQUESTS = 0.5  # share of failed requests above which the tree fails


class TreeFailed(RuntimeError):
    """The search of a question failed; the message gives the reason. `is_transient`: a later run may succeed."""

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


async def search(tree: Tree, teacher: Teacher) -> Tree:
    """Run `settings.simulations` iterations on `tree`, which is modified in place and returned.

    Raises:
        TreeFailed: there is no usable first step, more than half of the requests failed, or the endpoint was down.
    """
    for _ in range(tree.settings.simulations):
        try:
            await iterate(tree, teacher)
        except TransientError as error:
            raise TreeFailed(f"the endpoint failed: {error}", is_transient=True) from error
        if tree.root.closed:
            last = f"; last failure: {tree.last_failure}" if tree.last_failure else ""
            reason = f"no usable first step: {_failure_counts(tree)}{last}"
            raise TreeFailed(reason, is_transient=tree.lacks_text)
    failed = sum(n for name, n in tree.counts.items() if name.startswith("failed/"))
    if failed > MAX_FAILED_REQUESTS * tree.counts["requests"]:
        reason = f"{failed} of {tree.counts['requests']} requests failed; last failure: {tree.last_failure}"
        raise TreeFailed(reason, is_transient=tree.lacks_text)
    return tree


async def iterate(tree: Tree, teacher: Teacher) -> None:
    """Run one iteration: select, expand, simulate, back up."""
    path = select(tree)
    leaf = path[-1]
    if leaf.reward is not None:
        backup(path, leaf.reward)
        return
    requests_before, read_before = teacher.requests, teacher.read_tokens
    try:
        await _grow(tree, path, teacher)
    finally:
        tree.counts["requests"] += teacher.requests - requests_before
        tree.counts["read_tokens"] += teacher.read_tokens - read_before


async def _grow(tree: Tree, path: list[Node], teacher: Teacher) -> None:
    """Expand the leaf of `path`, roll its new children out, and back their rewards up."""
    leaf = path[-1]
    if len(path) - 1 < tree.settings.max_depth and not leaf.closed:
        leaf.children = await expand(tree, path, teacher)
        leaf.closed = not leaf.children
    paths = [[*path, child] for child in leaf.children] or ([path] if leaf is not tree.root else [])
    simulated = await asyncio.gather(*(simulate(tree, new_path, teacher) for new_path in paths), return_exceptions=True)
    outcome_lists = []
    for result in simulated:
        if isinstance(result, BaseException):
            raise result
        outcome_lists.append(result)
    for new_path, outcomes in zip(paths, outcome_lists, strict=True):  # in the order of the children, not of completion
        new_path[-1].outcomes += outcomes
        terminal_reward = new_path[-1].reward
        for reward in [o.reward for o in outcomes] if terminal_reward is None else [terminal_reward]:
            backup(new_path, reward)


def select(tree: Tree) -> list[Node]:
    """The path from the root to a leaf through the child with the highest score at each node (the first on a tie)."""
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
    """New children of the last node of `path`: at most `settings.children` distinct steps, in at most `expand_attempts` rounds.

    Priors are the softmax of the steps' mean token log-probabilities, or uniform. `tree.counts` counts rejected steps by
    reason. An empty list means that the teacher has no usable step here.
    """
    settings, parent = tree.settings, path[-1]
    accepted: list[Step] = []
    for attempt in range(settings.expand_attempts):
        missing = settings.children - len(accepted)
        seed = seed_of(settings.seed, tree.id, parent.id, "step", attempt)
        try:
            proposed = await teacher.steps(state_text(path), missing, seed)
        except SamplingError as error:
            _note(tree, "step", error)
            continue
        for step in proposed:
            tree.counts["completions"] += 1
            tree.counts["tokens"] += step.tokens
            step = _repaired(tree, step)
            problem = step.problem or (tree.problem(step.text) if step.text else None)
            problem = problem or rejection_reason(step, path, accepted, settings.zoom, tree.policy.box_tag)
            if problem is None:
                accepted.append(step)
            else:
                tree.counts[f"rejected/{problem}"] += 1
        if len(accepted) == settings.children:
            break
    else:
        tree.counts["short_expansions"] += 1
    priors = softmax([step.logprob if settings.prior == "logprob" else 0.0 for step in accepted])
    return [
        Node(f"{parent.id}.{i}", step.text, step.answer, _reward(tree, step.answer), round(prior, 6), step.logprob)
        for i, (step, prior) in enumerate(zip(accepted, priors, strict=True))
    ]


def _repaired(tree: Tree, step: Step) -> Step:
    """`step` without marks of layout, each kind counted; without rules as it is."""
    if tree.rules is None or step.problem:
        return step
    text, kinds = tree.rules.repairs(step.text)
    tree.counts.update(f"repaired/{kind}" for kind in kinds)
    return replace(step, text=text)


def rejection_reason(
    step: Step, path: Sequence[Node], siblings: Sequence[Step], zoom: str = "prompt", box_tag: str = "bbox"
) -> str | None:
    """The reason why a proposed step may not become a child, or None if it may.

    Reasons: `duplicate` (of a sibling), `repeated_text`, `repeated_box` and `zoomed_out`. The last one applies only if `zoom` is
    "strict": the largest box of the step is larger than that of the last boxed step before it.
    """
    key = _collapse_spaces(step.text)
    if any(_collapse_spaces(other.text) == key and other.answer == step.answer for other in siblings):
        return "duplicate"
    earlier = steps_of(path)
    if any(_collapse_spaces(line) == key for line in earlier):
        return "repeated_text"
    seen = {tuple(box) for line in earlier for box in parse_boxes(line, box_tag=box_tag)[0]}
    if any(tuple(box) in seen for box in parse_boxes(step.text, box_tag=box_tag)[0]):
        return "repeated_box"
    if zoom == "strict" and (area := largest_area(step.text, box_tag)) is not None:
        previous = next((a for line in reversed(earlier) if (a := largest_area(line, box_tag)) is not None), None)
        if previous is not None and area > previous:
            return "zoomed_out"
    return None


async def simulate(tree: Tree, path: Sequence[Node], teacher: Teacher) -> list[Outcome]:
    """Roll out the last node of `path`: `settings.rollouts` scored completions; none if it is terminal or the request fails."""
    node = path[-1]
    if node.is_terminal:
        return []
    seed = seed_of(tree.settings.seed, tree.id, node.id, "rollout", len(node.outcomes))
    state = state_text(path)
    try:
        endings = await teacher.endings(state, tree.settings.rollouts, seed)
    except SamplingError as error:
        _note(tree, "rollout", error)
        return []
    return [_outcome(tree, state, ending) for ending in endings]


def _note(tree: Tree, kind: str, error: SamplingError) -> None:
    """Count a failed request. Raises the error of an endpoint that was down: another run gets what is missing."""
    if isinstance(error, TransientError) and not isinstance(error, NoText):
        raise error
    tree.counts[f"failed/{kind}"] += 1
    tree.last_failure, tree.lacks_text = str(error), tree.lacks_text or isinstance(error, NoText)


def backup(path: Sequence[Node], reward: float) -> None:
    """Add one visit and its reward to every node of the path."""
    for node in path:
        node.visits += 1
        node.value_sum += reward


def seed_of(seed: int, sample_id: str, node_id: str, kind: str, attempt: int) -> int:
    """The seed of a request, in [0, 2^31). It does not depend on the order in which trees are searched."""
    text = "\n".join((str(seed), sample_id, node_id, kind, str(attempt)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _outcome(tree: Tree, state: str, ending: Ending) -> Outcome:
    answer = parse(state + ending.text).answer
    reward = _reward(tree, answer) or 0.0
    tree.counts["completions"] += 1
    tree.counts["tokens"] += ending.tokens
    tree.counts["rollouts/" + _rollout_kind(answer, reward, ending)] += 1
    return Outcome(ending.text, answer, reward)


def _rollout_kind(answer: str | None, reward: float, ending: Ending) -> str:
    if answer is None:
        return "no_answer" if ending.finished else "unended"
    return "correct" if reward else "wrong"


def _reward(tree: Tree, answer: str | None) -> float | None:
    if answer is None:
        return None
    return float(matches(answer, tree.sample.answer, tree.sample.choices))


def _failure_counts(tree: Tree) -> str:
    counts = {name: n for name, n in sorted(tree.counts.items()) if name.startswith(("rejected/", "failed/"))}
    return ", ".join(f"{n} {name.split('/')[1].replace('_', ' ')}" for name, n in counts.items())


def _collapse_spaces(text: str) -> str:
    return " ".join(text.split())
