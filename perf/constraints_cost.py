"""The cost of 1 to 12 constraints over the task reward alone: the step's formula at the paper's scale, and whole steps.

The rewards are synthetic and cheap (a pure function of the response), so that what is measured is the method's own work: group
statistics, weights, dual steps, metrics, gathering and log. A step is one of the in-process trainer on the SFT policy of the preset;
the trainers alternate in one process with the same weights and random numbers, so they write the same rollouts (`perf.constraints`).

Command: `python -m perf.constraints_cost --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perf.common import borrowed_stages, main, median, show
from perf.constraints import STEPS, WARM_UP, Arm, build, take_turns
from perf.pure import GROUP, MASKED, ROLLOUTS, ROUNDS
from rewards.base import TASK
from rl.dual import Constraint, DualAscent
from rl.in_process_trainer import InProcessTrainer
from rl.step import StepOptions, fgrpo_step

COUNTS = (1, 2, 4, 8, 12)
APPLICABLE = 0.6  # share of the responses that a synthetic constraint applies to
Reward = Callable[..., list[float | None]]


def share_of(name: str, text: str) -> float:
    """A number in [0, 1) that is a pure function of both, and independent between names."""
    digest = hashlib.blake2b(f"{name}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def text_of(completion: Any) -> str:
    """The text of a completion in either of TRL's forms."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def synthetic(name: str) -> Reward:
    """A reward function called `name`: 0 or 1, or None where it does not apply; the task's applies always."""

    def reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        applies = [name == TASK or share_of(f"{name} applies", text) < APPLICABLE for text in texts]
        return [
            float(share_of(name, text) < 0.5) if applicable else None
            for text, applicable in zip(texts, applies, strict=True)
        ]

    reward.__name__ = name
    return reward


def constraints(count: int) -> list[Constraint]:
    """`count` constraints on synthetic rewards."""
    return [Constraint(f"constraint_{n}", tau=0.5) for n in range(count)]


def with_constraints(count: int, model: Any, _: Any, args: Any, dataset: Any, **more: Any) -> Any:
    """The in-process trainer with a synthetic task reward and `count` constraints in place of the configured ones."""
    dual = DualAscent(constraints(count))
    rewards = [synthetic(TASK), *(synthetic(c.reward) for c in dual.constraints)]
    own = {"dual": dual, "scorer": None, "coupling": None, "max_failed_share": 1.0}
    return InProcessTrainer(model, rewards, args, dataset, **{**more, **own})


def formula_ms(counts: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Milliseconds of `fgrpo_step` on (640, 1 + count) scores by count, alternating; 40% of the constraints' are missing."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    cases = {}
    for count in counts:
        scores_NK = torch.rand(ROLLOUTS, 1 + count, generator=generator)
        scores_NK[:, 1:][torch.rand(ROLLOUTS, count, generator=generator) < MASKED] = torch.nan
        cases[count] = (scores_NK, DualAscent(constraints(count)))
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds + 1):
        for count, (scores_NK, dual) in cases.items():
            began = time.perf_counter()
            fgrpo_step(scores_NK, None, dual, StepOptions(GROUP))
            found[count].append(1000 * (time.perf_counter() - began))
    return {count: times[1:] for count, times in found.items()}


FORMULA_HEADINGS = ("constraints", "milliseconds", "over the task alone")
STEP_HEADINGS = ("constraints", "wall clock", "CPU seconds")


def named(count: int) -> str:
    """The first cell of a row."""
    return str(count) if count else "none (task alone)"


def formula_table(found: dict[int, list[float]]) -> list[tuple[str, ...]]:
    """Rows from milliseconds by count; the first count is the base."""
    base = next(iter(found.values()))
    return [(named(count), f"{median(times):.2f}", quartiles(times, base)) for count, times in found.items()]


def step_table(found: dict[int, tuple[Sequence[float], Sequence[float]]]) -> list[tuple[str, ...]]:
    """Rows from (wall, CPU) seconds of each step by count; the first count is the base, step by step."""
    base = next(iter(found.values()))
    return [
        (named(count), *(quartiles(times, one) for times, one in zip(both, base, strict=True)))
        for count, both in found.items()
    ]


def quartiles(values: Sequence[float], base: Sequence[float]) -> str:
    """The ratio of the medians, with the quartiles of the rounds' ratios in brackets; many rounds have stray extremes."""
    quarter = len(values) // 4
    order = sorted(range(len(values)), key=lambda i: values[i] / base[i])[quarter : len(values) - quarter]
    middle = f"{median(values) / median(base):.3f}"
    ends = [values[i] / base[i] for i in (order[0], order[-1])]
    return f"{middle} ({ends[0]:.3f}–{ends[1]:.3f})"


def whole_steps(args: argparse.Namespace, root: Path, counts: Sequence[int]) -> dict[int, Arm]:
    """Train all side by side, one step each in turn."""
    arms = {n: Arm(build(args, root, "fgrpo", f"rl-cost-{n}", partial(with_constraints, n))) for n in counts}
    take_turns({str(count): arm for count, arm in arms.items()})
    return arms


def body(args: argparse.Namespace) -> None:
    """Two tables."""
    counts = (0, *COUNTS)
    show(
        "Cost of more constraints: the formula",
        f"One step of advantages, dual ascent and metrics (`rl.step`) on {ROLLOUTS} rollouts in groups of {GROUP}, {MASKED:.0%} of the "
        f"constraints' scores not applicable; one core, {ROUNDS} alternating rounds. In brackets the quartiles of the ratio.",
        FORMULA_HEADINGS,
        formula_table(formula_ms(counts, ROUNDS)),
    )
    with borrowed_stages(args) as root:
        arms = whole_steps(args, root, counts)
    show(
        "Cost of more constraints: whole steps",
        f"Steps of `InProcessTrainer` on the preset's SFT policy with synthetic rewards, {STEPS - WARM_UP} rounds in turn, over the steps "
        "with the task reward alone. In brackets the quartiles of the ratio.",
        STEP_HEADINGS,
        step_table({count: (arm.wall[WARM_UP:], arm.cpu[WARM_UP:]) for count, arm in arms.items()}),
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
