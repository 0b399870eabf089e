"""The pure parts at the paper's scale: advantages with the dual step, and reading a rollout (parse, split, CIoU).

Command: `python -m perf.pure --preset mini`. Reading is measured in CPU time on made-up traces of exactly the
required size.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from fgrpo.response import parse
from perf.common import load, main, median, seconds, show
from rewards.semantic_grounding import sentences
from rewards.spatial_grounding import score
from rl.advantage import combine
from rl.train import make_dual

ROLLOUTS, GROUP, MASKED, ROUNDS = 640, 5, 0.4, 50
TRACES, WORDS, SENTENCES, BOXES, ROUNDS_OF_READING = 1000, 100, 10, 4, 9
VOCABULARY = [
    "red",
    "blue",
    "silver",
    "car",
    "bus",
    "person",
    "sign",
    "tree",
    "road",
    "lane",
    "left",
    "right",
    "above",
    "below",
    "near",
    "far",
    "side",
    "stands",
    "visible",
    "behind",
    "small",
    "large",
    "with",
    "its",
    "and",
    "of",
    "a",
    "two",
    "both",
    "clearly",
    "there",
    "so",
    "therefore",
    "image",
    "shows",
    "edge",
    "corner",
]


def combine_ms(args: argparse.Namespace) -> float:
    """Median milliseconds of `combine` and one dual step on (640, 4) scores, 40% of the constraint scores not applicable."""
    torch.set_num_threads(1)
    dual = make_dual(load(args, "fgrpo"))
    generator = torch.Generator().manual_seed(0)
    scores_NK = torch.rand(ROLLOUTS, 1 + len(dual.constraints), generator=generator)
    scores_NK[:, 1:][torch.rand(scores_NK[:, 1:].shape, generator=generator) < MASKED] = torch.nan

    def step() -> None:
        combine(scores_NK, torch.tensor(dual.weights()), GROUP)
        dual.step(scores_NK[:, 1:])

    step()
    return 1000 * median([seconds(step) for _ in range(ROUNDS)])


def trace(rng: random.Random) -> str:
    """A response whose trace has `WORDS` words (blanks between them) and `BOXES` boxes, in ten sentences on five lines."""
    lines = []
    for n in range(SENTENCES):
        words = ["The", *rng.choices(VOCABULARY, k=WORDS // SENTENCES - 1)]
        if n < BOXES:
            x, y = rng.randrange(500), rng.randrange(400)
            words[-2:] = ["at", f"<bbox>[{x},{y},{x + rng.randint(20, 200)},{y + rng.randint(20, 200)}]</bbox>"]
        lines.append(" ".join(words) + ".")
    rng.shuffle(lines)
    return (
        "<think>"
        + "\n".join(map(" ".join, zip(lines[::2], lines[1::2], strict=True)))
        + "</think><answer>left</answer>"
    )


def rollouts_per_second() -> float:
    """Responses per second of one core that are parsed, split into sentences and matched against as many annotated boxes."""
    rng = random.Random(0)
    texts = [trace(rng) for _ in range(TRACES)]
    read = [parse(text) for text in texts]
    assert all(len(r.think.split()) == WORDS and len(r.boxes) == BOXES for r in read)
    assert all(len(sentences(r.think)) == SENTENCES for r in read)
    gold = [r.boxes for r in (*read[1:], read[0])]

    def work() -> float:
        began = time.process_time()
        for text, gt in zip(texts, gold, strict=True):
            response = parse(text)
            sentences(response.think)
            score(response.boxes, gt)
        return time.process_time() - began

    work()
    return TRACES / median([work() for _ in range(ROUNDS_OF_READING)])


def body(args: argparse.Namespace) -> None:
    """One table."""
    milliseconds = combine_ms(args)
    rate = rollouts_per_second()
    show(
        "Pure parts",
        f"One core. The advantages of a batch at the paper's scale are {ROLLOUTS} rollouts by 4 score columns.",
        ("part", "figure"),
        [
            (f"`combine` and dual step, {ROLLOUTS} x 4", f"{milliseconds:.1f} ms"),
            (f"parse, split, CIoU of a trace of {WORDS} words with {BOXES} boxes", f"{rate:,.0f} rollouts per second"),
            ("reading a batch of rollouts over combining it", f"{1000 * ROLLOUTS / rate / milliseconds:.0f}"),
        ],
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
