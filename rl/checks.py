"""Refuses configurations that TRL would accept and that would silently not be FGRPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from trl import GRPOConfig

from rl.dual import Constraint, DualAscent


def check_config(args: GRPOConfig) -> None:
    """Reward weights, scaling, group size and save steps of a TRL configuration.

    Raises:
        ValueError: names the argument and what to set.
    """
    if args.reward_weights is not None:
        raise ValueError(
            "reward_weights are the multipliers, which the trainer sets; leave them out and set lam_init of the constraints"
        )
    if args.scale_rewards not in ("group", True):
        raise ValueError(
            f"scale_rewards={args.scale_rewards!r} has no effect on the advantages (rl.advantage.combine); leave it at 'group'"
        )
    if (args.num_generations or 0) < 2:
        raise ValueError(
            f"a group of {args.num_generations} rollout has no baseline; set num_generations to at least 2"
        )
    if args.steps_per_generation is None or args.generation_batch_size is None:
        raise ValueError("the configuration was not initialised: steps_per_generation is missing")
    _check_saving(args)


def _check_saving(args: GRPOConfig) -> None:
    """One dual step per generation: resuming from a checkpoint between a generation and its last update would take it twice.

    A stop after failed judgements saves the last update too, whatever `save_strategy` is.
    """
    micro_steps, of_update = (args.steps_per_generation or 1) * args.num_iterations, args.gradient_accumulation_steps
    if micro_steps % of_update:
        raise ValueError(
            f"a generation batch lasts {micro_steps} micro steps (steps_per_generation x num_iterations) and an update takes "
            f"{of_update} (gradient_accumulation_steps), so generations begin within an update; a run that stops there would "
            f"take a dual step twice when it resumes. Set steps_per_generation to a multiple of {of_update}"
        )
    updates = micro_steps // of_update
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return
    if strategy == "steps":
        if args.save_steps < 1:
            raise ValueError(f"save_steps={args.save_steps} is a share of the run; set a whole number of steps")
        for key in ("save_steps", "max_steps"):  # the last step is saved too
            steps = int(getattr(args, key))
            if steps > 0 and steps % updates:
                raise ValueError(
                    f"{key}={steps} saves between the updates of one generation batch, and resuming there would take its dual step "
                    f"twice; make {key} a multiple of {updates}"
                )
    elif updates > 1:
        raise ValueError(
            f"save_strategy={strategy!r} may save between the updates of one generation batch; use 'steps'"
        )


def check_constraints(
    names: Sequence[str], dual: DualAscent, constraints: Sequence[Constraint], coupling: str | None
) -> None:
    """Reward functions are the task's, then one per constraint, in order; a coupled reward has no constraints.

    Raises:
        ValueError: a constraint without a reward function, a reward without a constraint, two columns of one name.
    """
    if constraints and [c.reward for c in constraints] != [c.reward for c in dual.constraints]:
        raise ValueError("pass either constraints or a dual made of the same ones, not two different sets")
    constrained = [c.reward for c in dual.constraints]
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"two reward functions are called {twice[0]!r}; the task reward must be one column (add format and accuracy)"
        )
    if coupling is not None:
        if constrained:
            raise ValueError(
                f"a coupled reward ({coupling}) has no multipliers; leave out the constraints {constrained}"
            )
        if coupling not in ("additive", "multiplicative"):
            raise ValueError(f"coupling is None, 'additive' or 'multiplicative', got {coupling!r}")
        return
    if not names:
        raise ValueError("the first reward function must be the task reward")
    for name in constrained:
        if name == names[0]:
            raise ValueError(
                f"{name!r} is the first reward function, so it is the task reward, and cannot be a constraint too"
            )
        if name not in names:
            raise ValueError(
                f"no reward function is called {name!r}, as a constraint requires; there are {list(names)}"
            )
    if list(names[1:]) != constrained:
        raise ValueError(
            f"after the task reward {names[0]!r}, the constraints must follow in their order; reward functions {list(names[1:])}, constraints "
            f"{constrained}. Two task columns must be one (add format and accuracy)"
        )


def check_dataset(dataset: Any) -> None:
    """Every row has images, or none has: TRL decides by the first row of a batch.

    Raises:
        ValueError: the data set is empty, or mixes rows with and without images.
    """
    if dataset is None or not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        return
    if len(dataset) == 0:
        raise ValueError("the training data set is empty")
    table = dataset.with_format("arrow")
    for column in ("images", "image"):
        if column not in (dataset.column_names or ()):
            continue
        stored = table[:][column]
        if pa.types.is_list(stored.type) or pa.types.is_large_list(stored.type):
            without = sum(1 for n in pc.list_value_length(stored).to_pylist() if not n)
        else:
            without = stored.null_count
        if 0 < without < len(stored):
            raise ValueError(
                f"{without} of {len(stored)} rows have no image and the others have; train on rows with images, or on rows without"
            )
