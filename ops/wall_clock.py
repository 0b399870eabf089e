"""Wall clock of a preset's stages on its own machines, for `make plan`: what runs one after the other, and what beside.

GPU hours say what is paid, not how long it takes: RL's generation, weight sync, updates and checkpoints wait for one another, and
judging beyond the old and reference passes is waited for. Rates are assumptions of configs/plan.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgrpo.schema import Config, Serving

SIDE_PASSES = 1 / 3  # share of RL's passes beside which judges work: old and reference, 4 of 12 FLOP per token


@dataclass(frozen=True)
class Wall:
    """Hours of a stage, and the formula. `parts` are in hours, in the order in which they run."""

    stage: str
    parts: Mapping[str, float]
    how: str

    @property
    def hours(self) -> float:
        return sum(self.parts.values())

    def line(self) -> str:
        """One line of the plan."""
        parts = " + ".join(f"{hours:.2f} {name}" for name, hours in self.parts.items())
        return f"{self.stage:10} {self.hours:>10.2f} hours: {parts}; {self.how}"


def gpus(serving: Serving) -> int:
    """GPUs of a server."""
    return serving.tensor_parallel * serving.data_parallel


def sampling(stage: str, hours: float, number: int, how: str) -> Wall:
    """A stage that samples on `number` GPUs for `hours` GPU hours."""
    return Wall(stage, {"sampling": hours / number}, f"{hours:.2f} GPU hours on {number} {how}")


def sft(hours: float, number: int, checkpoints: int, checkpoint_bytes: float, write_gb_s: float) -> Wall:
    """SFT: updates and checkpoints, one after the other."""
    written = checkpoints * checkpoint_bytes / 1e9 / write_gb_s / 3600
    return Wall("sft", {"updates": hours / number, "checkpoints": written}, f"{checkpoints} checkpoints written")


def rl(
    config: Config,
    *,
    generating: float,
    training: float,
    judging: float,
    generations: int,
    checkpoints: int,
    checkpoint_bytes: float,
    sync_s: float,
    write_gb_s: float,
) -> Wall:
    """RL: generation, sync, updates and checkpoints, one after the other, and the judging that they do not hide.

    Args:
        generating, training, judging: GPU hours.
        generations: how often rollouts are generated, each after new weights.
        sync_s: seconds per transfer of the weights.
    """
    trainers = config.launch.machines * config.launch.rl_processes
    samplers = gpus(config.serve.rollouts) if config.rl.rollout_engine != "transformers" else trainers
    judges = gpus(config.serve.judge)
    updates = training / trainers
    waiting = max(0.0, judging / judges - updates * SIDE_PASSES)
    parts = {
        "generation": generating / samplers,
        "sync": generations * sync_s / 3600 if config.rl.rollout_engine != "transformers" else 0.0,
        "updates": updates,
        "waiting for judges": waiting,
        "checkpoints": checkpoints * checkpoint_bytes / 1e9 / write_gb_s / 3600,
    }
    how = f"{generations:,} generations on {samplers} GPUs, updates on {trainers}, judges on {judges}"
    return Wall("rl", parts, how)


def total(walls: Sequence[Wall]) -> str:
    """The line of the sum."""
    hours = sum(wall.hours for wall in walls)
    return f"{'total':10} {hours:>10.2f} hours ({hours / 24:.1f} days), stages one after the other"
