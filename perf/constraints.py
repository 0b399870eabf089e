"""Cost of the constraints: FGRPO's step over TRL's own GRPO step and over the task reward alone, and with slow judges.

The trainers of a table alternate in one process, step by step, with the same weights throughout (a learning rate near 0) and
the same random numbers, so they write the same rollouts. Ratios are of neighbouring steps, in wall-clock and in CPU seconds;
the latter hardly depend on the machine's other work. A step ends with its line in metrics.jsonl.
Command: `python -m perf.constraints --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from fgrpo import runs
from perf.common import borrowed_stages, generated_by, load, main, median, show, with_padded_rows
from rl.in_process_trainer import InProcessTrainer
from rl.scoring import RolloutScorer
from rl.train import build_trainer
from rl.trainer import FaithfulGRPOTrainer

STEPS, WARM_UP = 26, 2
DELAYS = (0.5, 0.9, 2.0)  # as shares of the log-prob passes' time


@dataclass
class Arm(TrainerCallback):
    """One of the alternating trainers.

    `wall` and `cpu` are seconds per step, `passes` those of its log-prob passes, `waits` those it waited for scores.
    """

    trainer: Any
    before_step: Callable[[], None] = lambda: None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    next: Arm | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turn.acquire()
        torch.manual_seed(state.global_step)
        self.before_step()
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = getattr(self.trainer, "seconds", None)
        if seconds:
            self.passes.append(seconds["rollout"] - seconds["generation"] - seconds["judging"])
            self.waits.append(seconds["judging"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "train_runtime" not in (logs or {}) and self.next is not None:
            self.wall.append(time.perf_counter() - self._began[0])
            self.cpu.append(time.process_time() - self._began[1])
            self.next.turn.release()

    def waiting(self) -> float:
        """Median share of a step that this trainer waited for scores."""
        return median([wait / step for wait, step in zip(self.waits, self.wall, strict=True)][WARM_UP:])

    def over(self, other: Arm) -> tuple[float, float]:
        """Median ratio of this trainer's steps to the other's, step by step: (wall clock, CPU)."""
        pairs = ((self.wall, other.wall), (self.cpu, other.cpu))
        one, two = (median([a / b for a, b in zip(*pair, strict=True)][WARM_UP:]) for pair in pairs)
        return one, two


def take_turns(arms: Mapping[str, Arm]) -> None:
    """Train all to the end, one step each in turn."""
    ring, failures = list(arms.values()), list[BaseException]()

    def work(arm: Arm) -> None:
        try:
            arm.trainer.train()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)
            for other in ring:
                other.turn.release(STEPS)

    for arm, follower in zip(ring, [*ring[1:], ring[0]], strict=True):
        arm.next = follower
        arm.trainer.add_callback(arm)  # after the logging callback, so that its work counts
    ring[0].turn.release()
    threads = [threading.Thread(target=work, args=(arm,)) for arm in ring]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def build(
    args: argparse.Namespace, root: Path, method: str, name: str, trainer: Any = None, more: Sequence[str] = ()
) -> Any:
    """A trainer as the stage builds it, in a run folder called `name`.

    Args:
        trainer: replaces the in-process trainer's class.
        more: overrides, which win over the measurement's own.
    """
    small = (f"rl.max_steps={STEPS}", "rl.learning_rate=1.0e-12", f"rl.save_steps={100 * STEPS}", "rl.monitor=[]")
    cfg = load(args, method, *small, *more)
    questions, policy = runs.folder(cfg, "data", root) / "rl.jsonl", runs.folder(cfg, cfg.rl.start, root) / "final"
    run = runs.Run.open(cfg, name, [questions, policy], root, depends_on={})
    with generated_by(trainer):
        return build_trainer(cfg, run, questions, policy)[0]


class PlainTrainer:
    """TRL's own trainer as a scorer reads it (`rl.scorer.ScoredTrainer`)."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.state, self.accelerator, self.async_loop = trainer.state, trainer.accelerator, trainer.async_loop
        self.group_size = trainer.num_generations

    def is_cut_off(self, ids: Sequence[int]) -> bool:
        """No reward here asks."""
        return False


def plain_trl(
    model: Any, _: Any, args: Any, dataset: Any, *, scorer: RolloutScorer, processing_class: Any, **__: Any
) -> Any:
    """TRL's own trainer with the same reward functions; scoring starts when TRL asks for rewards."""
    trainer: Any = None

    def column(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def scored(*, prompts: Any, completions: Any, completion_ids: Any, sample: Any, **more: Any) -> Any:
            if name == scorer.names[0]:
                rows = [{"sample": text} for text in sample]
                scorer.start(rows, completions, completion_ids, PlainTrainer(trainer))
            return await inner(prompts=prompts)

        scored.__name__ = name
        return scored

    funcs = [column(name, inner) for name, inner in zip(scorer.names, scorer.reward_funcs(), strict=True)]
    trainer = GRPOTrainer(model, funcs, args, dataset, processing_class=processing_class)
    return trainer


class Slow:
    """A reward that answers after `seconds`, as a judge behind an endpoint does."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    async def __call__(self, items: Any, context: Any) -> Any:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return await self.inner(items, context)


def slowed(trainer: FaithfulGRPOTrainer) -> Slow:
    """Put a `Slow` before the trainer's consistency judge."""
    scorer: Any = trainer.scorer
    scorer._rewards["consistency"] = slow = Slow(scorer._rewards["consistency"])
    return slow


def same_rewards(args: argparse.Namespace, root: Path) -> None:
    """FGRPO against TRL's own trainer: with TRL's generation and rows, with shared prompts, and with our decoder as well."""
    kinds = {
        "`FaithfulGRPOTrainer`, TRL's padded rows": with_padded_rows(FaithfulGRPOTrainer),
        "`FaithfulGRPOTrainer`, rollouts of a prompt in one row": FaithfulGRPOTrainer,
        "`InProcessTrainer`: that, and our decoder": InProcessTrainer,
    }
    theirs = Arm(build(args, root, "fgrpo", "rl-trl", plain_trl))
    ours = {name: Arm(build(args, root, "fgrpo", f"rl-ours-{n}", kind)) for n, (name, kind) in enumerate(kinds.items())}
    take_turns({"TRL": theirs, **ours})
    show(
        "FGRPO's step over TRL's own GRPO step",
        f"The same four reward columns (task and three constraints, the oracle judges them), {STEPS - WARM_UP} rounds of steps on the "
        "same rollouts (our decoder's are others of the same policy); ours include the dual step, metrics and written rollouts.",
        ("trainer", "wall clock", "CPU seconds"),
        [
            ("TRL's `GRPOTrainer`", "1.00", "1.00"),
            *((name, *(f"{ratio:.3f}" for ratio in arm.over(theirs))) for name, arm in ours.items()),
        ],
    )


def task_alone(args: argparse.Namespace, root: Path) -> None:
    """Three constraints judged in this process, against none."""
    arms = {method: Arm(build(args, root, method, f"rl-{method}")) for method in ("grpo-t", "fgrpo")}
    take_turns(arms)
    wall, cpu = arms["fgrpo"].over(arms["grpo-t"])
    show(
        "Cost of judging in process",
        f"The task reward alone against three constraints, both in our trainer, {STEPS - WARM_UP} pairs. The difference is the oracle's own "
        "work (sentences, statements, boxes) on the training core; a judge behind an endpoint uses none of it.",
        ("step of", "wall clock", "CPU seconds"),
        [("GRPO-T (task reward alone)", "1.00", "1.00"), ("FGRPO (three constraints)", f"{wall:.3f}", f"{cpu:.3f}")],
    )


def slow_judges(args: argparse.Namespace, root: Path) -> None:
    """A judge that answers late, against one that answers at once."""
    prompt = Arm(build(args, root, "fgrpo", "rl-prompt"))
    arms = {"0": prompt}
    for share in DELAYS:
        trainer = build(args, root, "fgrpo", f"rl-late-{share}")
        slow = slowed(trainer)

        def set_delay(slow: Slow = slow, share: float = share) -> None:
            slow.seconds = share * median(prompt.passes[-9:])

        arms[str(share)] = Arm(trainer, set_delay)
    take_turns(arms)
    rows = [("answers at once", "1.00", f"{prompt.waiting():.1%}")]
    for share in DELAYS:
        arm = arms[str(share)]
        words = f"answers after {share:g} of the log-prob passes' time"
        rows.append((words, f"{arm.over(prompt)[0]:.3f}", f"{arm.waiting():.1%}"))
    show(
        "A slow judge",
        f"{STEPS - WARM_UP} alternating rounds, wall clock. Judging starts when the rollouts exist and is awaited when rewards are needed. Up to "
        "the time of the log-prob passes it costs nothing; beyond that the step waits.",
        ("judge", "step over the first row's", "share of the step spent waiting"),
        rows,
    )


def body(args: argparse.Namespace) -> None:
    """Three tables."""
    with borrowed_stages(args) as root:
        same_rewards(args, root)
        task_alone(args, root)
        slow_judges(args, root)


if __name__ == "__main__":
    main(__doc__ or "", body)
