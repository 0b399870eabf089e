"""The pure parts at the paper's scale: advantages with the dual step, and reading a rollout (parse, split, CIoU).

Command: `python -m benchmarks.pure --preset mini` (after `make sft`, whose traces are read as rollouts).
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import load, main, median, seconds, show
from fgrpo import jsonl, runs
from fgrpo.boxes import match
from fgrpo.response import parse
from rewards.semantic_grounding import sentences
from rewards.spatial_grounding import score
from rl.advantage import combine
from rl.train import make_dual

ROLLOUTS, GROUP, MASKED, ROUNDS = 640, 5, 0.4, 50
SECONDS_OF_READING = 3.0


def combine_ms(args: argparse.Namespace) -> float:
    """Median milliseconds of `combine` and one dual step on (640, 4) scores, 40% of the constraints' not applicable."""
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


def rollouts_per_second(args: argparse.Namespace) -> tuple[float, int]:
    """Rollouts a second that are parsed, split into sentences and matched against boxes; and how many different ones."""
    cfg = load(args, args.method)
    traces = runs.require(runs.folder(cfg, "mcts", args.runs) / "traces.jsonl", "mcts")
    texts = [item["text"] for item in jsonl.read(traces)]
    gold = [list(parse(text).boxes) for text in texts]

    def read() -> None:
        for text, gt in zip(texts, [*gold[1:], gold[0]], strict=True):
            response = parse(text)
            sentences(response.think)
            if gt:
                score(response.boxes, gt)
            else:
                match(response.boxes, gt)

    read()
    times = [seconds(read)]
    while sum(times) < SECONDS_OF_READING:
        times.append(seconds(read))
    return len(texts) / median(times), len(texts)


def body(args: argparse.Namespace) -> None:
    """One table."""
    milliseconds = combine_ms(args)
    rate, count = rollouts_per_second(args)
    show(
        "Pure parts",
        f"One core. The advantages of a batch at the paper's scale are {ROLLOUTS} rollouts by 4 signals.",
        ("part", "figure"),
        [
            (f"`combine` and dual step, {ROLLOUTS} x 4", f"{milliseconds:.1f} ms"),
            (f"parse, split, CIoU of a rollout ({count:,} traces)", f"{rate:,.0f} rollouts a second"),
            ("reading a batch of rollouts over combining it", f"{1000 * ROLLOUTS / rate / milliseconds:.0f}"),
        ],
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
