"""Wall clock of a preset's stages on its own machines, for `make plan`: what runs one after the other, and what in parallel.

GPU hours of work say what is computed, not how long it takes: servers start, RL's generation, weight sync, updates and checkpoints wait
for one another, and judging that outlasts the old and reference passes is waited for. All GPUs of a stage's machines are held meanwhile.
Rates are assumptions of configs/plan.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIDE_PASSES = 1 / 3  # share of RL's passes beside which judges work: old and reference, 4 of 12 FLOP per token


@dataclass(frozen=True)
class Wall:
    """Hours of a stage, and the formula.

    Attributes:
        parts: hours, in the order in which they run.
        held: GPUs of the machines that the stage runs on.
    """

    stage: str
    parts: Mapping[str, float]
    how: str
    held: int

    @property
    def hours(self) -> float:
        return sum(self.parts.values())

    def line(self) -> str:
        """One line of the plan."""
        parts = " + ".join(f"{hours:.2f} {name}" for name, hours in self.parts.items() if hours)
        return f"{self.stage:10} {self.hours:>10.2f} hours: {parts}; {self.how}"


@dataclass(frozen=True)
class Rates:
    """Seconds of a start, of a weight sync and of preparing one image; GB/s of writing."""

    start_s: float
    sync_s: float
    image_s: float
    write_gb_s: float

    def written(self, checkpoints: int, size: float) -> float:
        """Hours in which checkpoints of `size` bytes are written."""
        return checkpoints * size / 1e9 / self.write_gb_s / 3600


def sampling(
    stage: str, hours: float, number: int, held: int, *, starts: int, rates: Rates, preparation: float = 0.0
) -> Wall:
    """A stage that samples for `hours` GPU hours on `number` GPUs, whose servers start `starts` times; `preparation` in hours."""
    parts = {"preparation": preparation, "start": starts * rates.start_s / 3600, "sampling": hours / number}
    return Wall(
        stage, parts, f"{hours:.2f} GPU hours on {number} GPUs, {starts} start{'s' * (starts != 1)} of servers", held
    )


def sft(stage: str, hours: float, number: int, held: int, checkpoints: tuple[int, float], rates: Rates) -> Wall:
    """SFT or the anchor stage: updates and checkpoints (how many, bytes of one), one after the other."""
    parts = {"start": rates.start_s / 3600, "updates": hours / number, "checkpoints": rates.written(*checkpoints)}
    return Wall(stage, parts, f"updates on {number}, {checkpoints[0]} checkpoints written", held)


def rl(
    *,
    generating: float,
    training: float,
    judging: float,
    generations: int,
    prompts: int,
    samplers: int,
    trainers: int,
    judges: int,
    syncs: bool,
    held: int,
    checkpoints: tuple[int, float],
    rates: Rates,
) -> Wall:
    """RL: images, generation, sync, updates and checkpoints, one after the other, and the judging that they do not hide.

    Args:
        generating, training, judging: GPU hours.
        generations: how often rollouts are generated, each after new weights, for `prompts` questions.
        samplers, trainers, judges: GPUs; without GPUs of their own, judges are not waited for.
        syncs: whether vLLM generates, which gets the weights before each generation.
        checkpoints: how many, and the bytes of one.
    """
    updates = training / trainers
    parts = {
        "start": (2 if syncs or judging else 1) * rates.start_s / 3600,  # servers, then training
        "images": generations * prompts / trainers * rates.image_s / 3600,
        "generation": generating / samplers,
        "sync": generations * rates.sync_s / 3600 if syncs else 0.0,
        "updates": updates,
        "waiting for judges": max(0.0, judging / judges - updates * SIDE_PASSES) if judges else 0.0,
        "checkpoints": rates.written(*checkpoints),
    }
    how = f"{generations:,} generations on {samplers} GPUs, updates on {trainers}, judges {f'on {judges}' if judges else 'elsewhere'}"
    return Wall("rl", parts, how, held)


def held_hours(walls: Sequence[Wall]) -> float:
    """GPU hours that the stages hold, whether busy or not."""
    return sum(wall.hours * wall.held for wall in walls)


def total(walls: Sequence[Wall]) -> str:
    """The line of the sum."""
    hours = sum(wall.hours for wall in walls)
    return f"{'total':10} {hours:>10.2f} hours ({hours / 24:.1f} days), stages one after the other; {held_hours(walls):,.0f} GPU hours held"
