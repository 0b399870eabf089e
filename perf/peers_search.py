"""The tree search against a client with the request pattern of ViGoRL's published search, on the same questions and endpoint.

Facts about that pattern (Gabesarch/grounded-rl, scripts/mcts/run_mcts_qwen72b.sh, src/vlmsearch): ten workers, each with its
share of the questions and one request in flight; 8 simulations per tree by UCB1 with c = 2; an expansion makes 3 requests of one
continuation each; each new child gets 2 rollouts of at most 5 requests, one reasoning step per request, the last one forced to
answer; the depth is at most 10. The `openai` client repeats a failed request twice; any error loses the tree, and the worker goes
on. `one_step_search` is our own code with this pattern. It is milder than the original: images are encoded once per tree, and a
step may go on from a prefix.

The endpoint takes a fixed time per request, whether one continuation or three are requested; continuations are counted beside
requests, because a real server's time grows with both. Both clients search the same questions with the same limits.

Command: `python -m perf.peers_search` (`--trees 20 --slots 8 --service-ms 250 --rounds 3`).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
from PIL import Image

from fgrpo.config import load
from fgrpo.images import data_url
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.schema import Config
from perf.common import median, ratio, show, spread
from perf.endpoint import MODEL, in_own_process
from perf.search import IMAGE_SIZE, run_trees

WORKERS = 10
FAULTS = 0.3
TIMEOUT_SERVICES = 8  # both clients give a request up after so many service times in an idle slot
GOLD = "left"
END_OF_ANSWER = "</answer>"


@dataclass(frozen=True)
class Pattern:
    """What ViGoRL's script and the defaults of its arguments set."""

    simulations: int = 8
    children: int = 3
    rollouts: int = 2
    exploration: float = 2.0
    depth: int = 10
    rollout_steps: int = 5


PATTERN = Pattern()


@dataclass
class Step:
    """A node: the text from the root to it, and the mean reward of its rollouts."""

    text: str
    depth: int
    children: list[Step] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0

    @property
    def is_terminal(self) -> bool:
        return self.text.endswith(END_OF_ANSWER)

    def add(self, reward: float) -> None:
        """Count one rollout."""
        self.visits += 1
        self.value += (reward - self.value) / self.visits


Ask = Callable[[str, bool], str]  # (text so far, whether the answer is due) -> the next step, or the answer


def one_step_search(ask: Ask, pattern: Pattern = PATTERN) -> Step:
    """One tree, every step of it a request of its own, one after another. Errors of `ask` pass through."""
    root = Step("", 0)
    for _ in range(pattern.simulations):
        path = [root]
        while path[-1].children and not path[-1].is_terminal:
            path.append(max(path[-1].children, key=lambda child: _ucb1(path[-1], child, pattern)))
        leaf = path[-1]
        if leaf.is_terminal:
            for node in path:
                node.add(leaf.value)
            continue
        new = [_child(leaf, ask(leaf.text, leaf.depth >= pattern.depth)) for _ in range(pattern.children)]
        leaf.children += new
        for child in new:
            for _ in range(pattern.rollouts):
                reward = _rollout(child, ask, pattern)
                for node in [*path, child]:
                    node.add(reward)
    return root


def _child(parent: Step, text: str) -> Step:
    return Step(parent.text + text, parent.depth + 1)


def _ucb1(parent: Step, child: Step, pattern: Pattern) -> float:
    return child.value + pattern.exploration * math.sqrt(math.log(parent.visits + 1) / (child.visits + 1))


def _rollout(start: Step, ask: Ask, pattern: Pattern) -> float:
    """1.0 if the steps from `start` on lead to the gold answer, else 0.0."""
    text = start.text
    steps = min(pattern.rollout_steps, pattern.depth - start.depth)
    for n in range(steps):
        if text.endswith(END_OF_ANSWER):
            break
        text += ask(text, n + 1 == steps)
    return float(text.endswith(f"<answer>{GOLD}{END_OF_ANSWER}"))


def one_step_client(
    url: str, questions: int, image: Path, timeout_s: float, workers: int = WORKERS, pattern: Pattern = PATTERN
) -> Counter[str]:
    """Search `questions` trees in `workers` shards; trees by outcome: "grown", or the name of the error that lost one."""
    address = data_url(str(image))
    client = openai.OpenAI(base_url=url, api_key="none", timeout=timeout_s)  # with its own two retries

    def shard(ids: Sequence[int]) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        for question in ids:
            seeds = itertools.count(1_000_000 * question)  # ours: without seeds no run could be repeated

            def ask(text: str, is_last: bool, seeds: Any = seeds) -> str:
                return _request(client, address, text, is_last, next(seeds))

            try:
                one_step_search(ask, pattern)
            except Exception as error:  # noqa: BLE001 - as the worker of the original does; counted by name
                outcomes[type(error).__name__] += 1
            else:
                outcomes["grown"] += 1
        return outcomes

    size = math.ceil(questions / workers)
    shards = [range(start, min(start + size, questions)) for start in range(0, questions, size)]
    with client, ThreadPoolExecutor(len(shards)) as pool:
        return sum(pool.map(shard, shards), Counter())


def _request(client: openai.OpenAI, address: str, text: str, is_last: bool, seed: int) -> str:
    """One continuation of one step (of all that is missing, if the answer is due)."""
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Left or right?"}]
    messages: list[Any] = [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": text}] if text else []
    stop = [END_OF_ANSWER] if is_last else ["\n", END_OF_ANSWER]
    reply = client.chat.completions.create(model=MODEL, messages=messages, stop=stop, seed=seed, max_tokens=512)
    return reply.choices[0].message.content or ""


@dataclass
class Round:
    """One client's run: trees that it was given and grew, requests that the endpoint served, continuations, seconds."""

    given: int
    grown: int
    requests: float
    continuations: float
    seconds: float

    @property
    def per_hour(self) -> float:
        return 3600 * self.grown / self.seconds

    @property
    def requests_per_tree(self) -> float:
        return self.requests / self.given


def theirs(args: argparse.Namespace, faults: float) -> Round:
    """The client with the pattern above."""
    with TemporaryDirectory() as folder, in_own_process(args.slots, args.service_ms / 1000, faults) as (url, ended):
        image = Path(folder, "image.jpg")
        Image.effect_noise(IMAGE_SIZE, 64).convert("RGB").save(image)
        outcomes = one_step_client(url, args.trees, image, timeout_of(args))
        found = ended()
    return Round(args.trees, outcomes["grown"], found["served"], found["served"], found["span_s"])


def ours(args: argparse.Namespace, faults: float) -> Round:
    """The stage as `make mcts` runs it, over its own client."""
    config: Config = load("paper-7b", overrides=["mcts.max_failed_share=1.0"])  # lost trees are counted here
    with in_own_process(args.slots, args.service_ms / 1000, faults) as (url, ended):
        engine = OpenAISampler(
            [url], MODEL, forbidden=(), concurrency=WORKERS,
            timeout_s=timeout_of(args), patience_s=config.engine.patience_s,
        )  # fmt: skip
        _, counts = run_trees(config, args.trees, engine, with_images=True)
        found = ended()
    return Round(args.trees, counts["trees"], found["served"], counts["completions"], found["span_s"])


def timeout_of(args: argparse.Namespace) -> float:
    """Seconds after which both clients give a request up: some services, after waiting for a slot behind all workers."""
    return TIMEOUT_SERVICES * args.service_ms / 1000 * max(1.0, WORKERS / args.slots)


CLIENTS: dict[str, Callable[[argparse.Namespace, float], Round]] = {
    "one step per request (ViGoRL's pattern)": theirs,
    "this search": ours,
}
HEADINGS = (
    "client", "trees per hour", "over the first row", "requests per tree", "continuations per tree", "trees lost",
)  # fmt: skip


def table(found: dict[tuple[str, float], list[Round]]) -> list[tuple[str, ...]]:
    """Rows from the rounds of (client, share of faults); rates are ratios to the first client without faults."""
    base = [r.per_hour for r in next(iter(found.values()))]
    rows: list[tuple[str, ...]] = []
    for (name, faults), rounds in found.items():
        rates = [r.per_hour for r in rounds]
        rows.append(
            (
                f"{name}, {faults:.0%} faults" if faults else name,
                f"{median(rates):,.0f}",
                ratio(rates, base),
                spread([r.requests_per_tree for r in rounds], ".1f"),
                f"{median([r.continuations / r.given for r in rounds]):.1f}",
                f"{sum(r.given - r.grown for r in rounds)} of {sum(r.given for r in rounds)}",
            )
        )
    return rows


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description="measure the tree search against ViGoRL's request pattern")
    arguments.add_argument("--trees", type=int, default=20)
    arguments.add_argument("--slots", type=int, default=8)
    arguments.add_argument("--service-ms", type=float, default=250.0)
    arguments.add_argument("--rounds", type=int, default=3)
    args = arguments.parse_args()
    found: dict[tuple[str, float], list[Round]] = {(n, f): [] for f in (0.0, FAULTS) for n in CLIENTS}
    for _ in range(args.rounds):
        for (name, faults), rounds in found.items():
            rounds.append(CLIENTS[name](args, faults))
    words = (
        f"{args.trees} questions with images, an endpoint with {args.slots} slots and {args.service_ms:g} ms per request however many "
        f"continuations it is for, {args.rounds} alternating rounds, at most {WORKERS} requests in flight; {PATTERN.simulations} simulations, {PATTERN.children} children, "
        f"{PATTERN.rollouts} rollouts in both. A lost tree is one that the client gave up. With faults, {FAULTS:.0%} of the replies are "
        f"lost (500, 503, 429, closed, a page, cut, silence; time-out {timeout_of(args):g} s for both), and requests count the repeated ones. "
        "In brackets the lowest and highest round."
    )
    show("Search against ViGoRL's request pattern", words, HEADINGS, table(found))


if __name__ == "__main__":
    main()
