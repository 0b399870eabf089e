"""Translates the configuration into TRL's arguments (Table 5); tests/rl/test_stage.py pins every value.

Choices: `loss_type` is config.rl.loss, by default "grpo": the mean over a rollout's tokens, then over rollouts. That is
GRPO's own form, does not depend on how a batch is split into micro-batches, and weighs rollouts as sequence whitening does
(TRL's default "dapo" weighs tokens). KL is TRL's k3 estimate inside the loss. TRL's `epsilon` bounds the ratio from below.
Data order is ours (`rl.data.order`), so TRL does not shuffle. So are advantages (`rl.step`): TRL's aggregation options only keep
its own logged figures comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from fgrpo.errors import UserError
from fgrpo.inference.openai_engine import FORBIDDEN_BIAS
from fgrpo.policy import loading
from fgrpo.schema import Config
from fgrpo.schema_rl import Rl
from fgrpo.training import distributed


def updates_per_generation(rl: Rl) -> int:
    """Optimizer steps that one generation batch serves (2 in Table 5).

    Raises:
        UserError: the rollout batch is not a multiple of the global batch.
    """
    if rl.rollout_batch % rl.global_batch:
        raise UserError(
            f"rl.rollout_batch ({rl.rollout_batch} prompts) must be a multiple of rl.global_batch ({rl.global_batch} prompts)"
        )
    return rl.rollout_batch // rl.global_batch


def total_steps(rl: Rl, prompts: int) -> int:
    """Optimizer steps of the run: `max_steps` rounded up to complete generations, or `epochs` over `prompts` prompts."""
    updates = updates_per_generation(rl)
    if rl.max_steps > 0:
        return -(-rl.max_steps // updates) * updates
    return max(1, int(rl.epochs * prompts) // rl.rollout_batch) * updates


def grpo_config(
    config: Config, folder: str | Path, steps: int, forbidden: Sequence[int] = (), world: int | None = None
) -> GRPOConfig:
    """TRL's arguments for one RL run.

    Args:
        folder: of the checkpoints.
        steps: optimizer steps of the run (`total_steps`).
        forbidden: token ids that must never be sampled.
        world: number of processes; None: from the environment.

    Raises:
        UserError: batch sizes that do not divide (names the keys).
    """
    rl = config.rl
    processes = distributed.world_size() if world is None else world
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        seed=config.seed,
        run_name=f"{config.preset}-{config.method}",
        **_method(rl),
        **_batches(rl, processes),
        **_machine(config),
        **_bookkeeping(rl),
        **_engine(config, forbidden),
    )


def check_batches(rl: Rl, processes: int) -> None:
    """Check that processes can share an update, and updates a generation.

    Raises:
        UserError: batch sizes that do not divide (names the keys).
    """
    updates_per_generation(rl)
    per_update = rl.global_batch * rl.group_size
    if per_update % (rl.micro_batch * processes):
        raise UserError(
            f"an update has rl.global_batch x rl.group_size = {per_update} rollouts, which {processes} processes with "
            f"rl.micro_batch = {rl.micro_batch} cannot share evenly; make rl.micro_batch a divisor of {per_update // processes}"
        )


def _method(rl: Rl) -> dict[str, Any]:
    """Table 5 and Eq. 6."""
    return {
        "multi_objective_aggregation": "normalize_then_sum",
        "scale_rewards": "group",
        "loss_type": rl.loss,
        "beta": rl.kl_coef,
        "epsilon": rl.epsilon,
        "epsilon_high": rl.epsilon_high,
        "num_iterations": 1,
        "num_generations": rl.group_size,
        "temperature": rl.temperature,
        "max_completion_length": rl.max_response_length,
        "learning_rate": rl.learning_rate,
        "weight_decay": rl.weight_decay,
        "warmup_steps": rl.warmup_ratio,  # below 1, transformers reads it as a share of the run
        "lr_scheduler_type": rl.scheduler,
        "max_grad_norm": rl.max_grad_norm,
        "optim": "adamw_torch",
        **_reference(rl),
    }


def _reference(rl: Rl) -> dict[str, Any]:
    """TRL's moving average of the policy in place of a fixed reference."""
    if rl.reference is None:
        return {}
    return {
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 1 - rl.reference.decay,
        "ref_model_sync_steps": rl.reference.every,
    }


def _batches(rl: Rl, processes: int) -> dict[str, Any]:
    check_batches(rl, processes)
    passes = rl.global_batch * rl.group_size // (rl.micro_batch * processes)  # of one update
    return {
        "per_device_train_batch_size": rl.micro_batch,
        "gradient_accumulation_steps": passes,
        "steps_per_generation": updates_per_generation(rl) * passes,
    }


def _machine(config: Config) -> dict[str, Any]:
    rl = config.rl
    return {
        **distributed.trainer_arguments(rl.deepspeed, config.launch.timeout_s, config.launch.rl_image_workers),
        "bf16": rl.precision == "bf16",
        "gradient_checkpointing": rl.gradient_checkpointing,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": loading.device() != "cpu",
    }


def _bookkeeping(rl: Rl) -> dict[str, Any]:
    """Checkpoints between generations, and a log line per step."""
    updates = updates_per_generation(rl)
    return {
        "save_strategy": "steps",
        "save_steps": -(-rl.save_steps // updates) * updates,
        "save_total_limit": rl.keep_checkpoints,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",  # `fgrpo.training.tracking` adds the tracker
    }


def _engine(config: Config, forbidden: Sequence[int]) -> dict[str, Any]:
    """The rollout engine, which must not sample image and special tokens."""
    rl = config.rl
    if rl.rollout_engine == "transformers":
        return {"generation_kwargs": {"suppress_tokens": list(forbidden)} if forbidden else None}
    return {
        "use_vllm": True,
        "vllm_mode": rl.rollout_engine.removeprefix("vllm-"),
        "generation_kwargs": {"logit_bias": dict.fromkeys(forbidden, FORBIDDEN_BIAS)} if forbidden else None,
        "vllm_server_base_url": rl.vllm.server.replace("{preset}", config.preset),
        "vllm_server_timeout": rl.vllm.start_s,
        "vllm_group_port": rl.vllm.sync_port,
        "vllm_gpu_memory_utilization": rl.vllm.memory_share,
        "vllm_tensor_parallel_size": rl.vllm.tensor_parallel,
        "vllm_max_model_length": rl.max_prompt_length + rl.max_response_length,
    }
