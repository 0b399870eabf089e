"""The training stages of a method, and what its configuration says about them: processes, updates, tokens of a sequence.

The anchor stage, which a method with `rl.start: anchor` needs, is SFT with one more pass over each prompt (`sft.anchor`).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from fgrpo.schema import Config
from ops.assumptions import Assumptions
from ops.workload import anchor_updates, rl_updates, sft_updates

Stage = Literal["sft", "anchor", "rl"]


def stages(config: Config) -> tuple[Stage, ...]:
    """The training stages of a method, in order."""
    return ("sft", "anchor", "rl") if config.rl.start == "anchor" else ("sft", "rl")


def folder_of(config: Config, stage: Stage) -> str:
    """The name of a stage's run folder, and of its make target."""
    return f"rl-{config.method}" if stage == "rl" else stage


def section(config: Config, stage: Stage) -> Any:
    """The configuration's section that says how a stage trains: the anchor stage has that of SFT."""
    return config.rl if stage == "rl" else config.sft


def processes(config: Config, stage: Stage) -> int:
    """Training processes per machine."""
    return config.launch.rl_processes if stage == "rl" else config.launch.sft_processes


def updates(config: Config, stage: Stage) -> int:
    """Optimizer steps of a stage."""
    return {"sft": sft_updates, "anchor": anchor_updates, "rl": rl_updates}[stage](config)


def saves(config: Config, stage: Stage) -> int:
    """How many checkpoints a stage writes: one each `save_steps` (RL: at the end of a generation), and one after the last update."""
    every = section(config, stage).save_steps
    if stage == "rl":
        per_generation = config.rl.rollout_batch // config.rl.global_batch
        every = math.ceil(every / per_generation) * per_generation
    return math.ceil(updates(config, stage) / every)


def generations(config: Config) -> int:
    """How often RL generates rollouts."""
    return math.ceil(rl_updates(config) * config.rl.global_batch / config.rl.rollout_batch)


def prompts_per_pass(config: Config, *, most: bool = False) -> float:
    """Prompts that one pass of RL computes, on average or at most; of consecutive rollouts, whose groups are whole.

    A pass may begin within a group, at any multiple of the common divisor of `rl.micro_batch` and `rl.group_size`.
    """
    rows, size = config.rl.micro_batch, config.rl.group_size
    if config.rl.shared_prefix == "off":
        return rows
    further = (rows - math.gcd(rows, size)) / size
    return 1 + math.ceil(further) if most else 1 + further


def likely_lengths(config: Config, stage: Stage, assume: Assumptions) -> tuple[float, float]:
    """(tokens of a prompt, of a response) in a training stage: as assumed, and within the stage's limits."""
    prompt, response = assume["lengths.prompt"], assume["lengths.response"]
    if stage == "rl":
        return min(prompt, config.rl.max_prompt_length), min(response, config.rl.max_response_length)
    prompt = min(prompt, config.sft.max_length)
    return prompt, min(response, config.sft.max_length - prompt)


def trained_length(config: Config, stage: Stage, assume: Assumptions) -> float:
    """Tokens that one sequence of training takes, its share of the prompt included; in the anchor stage its prompt passes twice."""
    prompt, response = likely_lengths(config, stage, assume)
    share = prompts_per_pass(config) / config.rl.micro_batch if stage == "rl" else 2.0 if stage == "anchor" else 1.0
    return share * prompt + response
