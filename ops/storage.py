"""What a run writes and moves: rollouts, pixel values, checkpoints, texts, and the disk that they take (`make plan`)."""

from __future__ import annotations

from fgrpo.schema import Config
from fgrpo.training.checkpoints import SFT_KEPT
from ops import memory_estimate
from ops.assumptions import IMAGE, Assumptions
from ops.memory_estimate import GB, Part, Shape
from ops.training_memory import pixel_parts, trained_parameters
from ops.training_stages import Stage, generations, saves, section, stages


def volumes(config: Config, shape: Shape, assume: Assumptions) -> list[str]:
    """One line each: rollouts, pixel values of a generation, and what checkpoints write over a run."""
    rl = config.rl
    rollouts = rl.rollout_batch * rl.group_size
    likely, most = (pixel_parts(config, "rl", tokens)[0] for tokens in (assume[IMAGE], None))
    out = [
        f"rollouts   {generations(config) * rollouts:,} in {generations(config):,} generations of {rollouts:,} ({rl.rollout_batch} prompts x {rl.group_size})",
        f"pixels     {likely.size / GB:.2f} GB of pixel values in a process' generation, at most {most.size / GB:.2f}: {likely.formula}",
    ]
    for stage in stages(config):
        number, size = written_checkpoints(config, stage, shape)
        key = f"{'rl' if stage == 'rl' else 'sft'}.save_steps={section(config, stage).save_steps}"
        out.append(
            f"{stage:10} {number:,} checkpoints of {size / GB:,.0f} GB written in all, {number * size / 1e12:.1f} TB ({key})"
        )
    return out


def written_checkpoints(config: Config, stage: Stage, shape: Shape) -> tuple[int, float]:
    """Checkpoints that a training stage writes, most of which it deletes again, and the bytes of one."""
    own = section(config, stage)
    trained, adapters = trained_parameters(config, stage, shape), own.lora is not None
    one = memory_estimate.checkpoints(shape, trained, 1, 0, half=own.precision == "bf16", adapters=adapters)
    return saves(config, stage), one.size


def checkpoints(config: Config, stage: Stage, shape: Shape) -> Part:
    """The most disk that a training stage uses: one checkpoint is written before the oldest is deleted."""
    own = section(config, stage)
    kept = config.rl.keep_checkpoints if stage == "rl" else SFT_KEPT
    number = saves(config, stage) if kept is None else min(kept + 1, saves(config, stage))
    trained, adapters = trained_parameters(config, stage, shape), own.lora is not None
    # the last one; the best state and a new best one; in the anchor stage also the model with the fresh token
    whole = {"rl": 1, "sft": 2, "anchor": 3}[stage]
    whole += number if stage == "rl" and config.rl.reference is not None else 0  # the reference as of each checkpoint
    return memory_estimate.checkpoints(shape, trained, number, whole, half=own.precision == "bf16", adapters=adapters)


def disk(config: Config, shape: Shape, tokens: int, assume: Assumptions) -> list[str]:
    """One line each: disk of SFT, of RL with one method, and of sampled text."""
    parts = [(stage, checkpoints(config, stage, shape)) for stage in stages(config)]
    trained = [f"{stage:10} about {part.size / GB:,.1f} GB: {part.formula}" for stage, part in parts]
    each = assume["disk.bytes_a_token"]
    how = f"{tokens:,} tokens x {each:g} bytes (trees, rollouts, answers, verdicts)"
    return [*trained, f"texts      about {tokens * each / GB:,.2f} GB: {how}"]
