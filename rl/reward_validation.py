"""What a reward function may return: per rollout None (not applicable, or failed) or a finite number, and nothing else.

TRL turns None into NaN and sums with `nansum`, so a NaN or an infinity that a reward function returns by mistake would pass
for "not applicable", or spoil a batch. `guarded` names the reward and the rollout instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from trl.trainer.grpo_trainer import get_callable_name, is_async_callable

from fgrpo.errors import UserError

Values = Sequence[float | None]


class NoScore(UserError, ValueError):
    """A reward returned something that is not a score."""


def rollout_id(step: int, rank: int, row: int, sample: str = "") -> str:
    """ "<step>/<rank>/<row of its batch>", and the sample's id where there is one."""
    return f"{step:06d}/{rank}/{row:04d}" + (f"/{sample}" if sample else "")


def guarded(
    func: Any,
    note: Callable[[str, Values], None],
    stop: Callable[[UserError], None] | None = None,
    name: str | None = None,
) -> Any:
    """A reward function whose values are checked and noted on their way to TRL.

    Reward models and names of models, which TRL runs itself, stay as they are (see `check_reward_models`).

    Args:
        func: a reward function of TRL, plain or asynchronous.
        note: called with the function's name and what it returned.
        stop: called with a UserError of the function (a judge with a refused key); the function then returns None for each
            rollout, so that all processes reach the end of the step and can stop together. None: the error is raised.
        name: of the reward; None: the function's own.

    Raises:
        NoScore: (the result raises it) a value is neither None nor a finite number.
    """
    if isinstance(func, (str, torch.nn.Module)) or not callable(func):
        return func
    reward = get_callable_name(func) if name is None else name

    def passed_on(returned: Iterable[float | None], arguments: Mapping[str, Any]) -> Values:
        values = returned if isinstance(returned, Sequence) else list(returned)  # an iterator can be read once
        note(reward, checked(values, reward, arguments))
        return values

    def stopped(error: UserError, arguments: Mapping[str, Any]) -> Values:
        if stop is None or isinstance(error, NoScore):
            raise error
        stop(error)
        return [None] * len(arguments["completions"])

    async def awaited(*args: Any, **arguments: Any) -> Any:
        try:
            return passed_on(await func(*args, **arguments), arguments)
        except UserError as error:
            return stopped(error, arguments)

    def called(*args: Any, **arguments: Any) -> Any:
        try:
            return passed_on(func(*args, **arguments), arguments)
        except UserError as error:
            return stopped(error, arguments)

    column: Any = awaited if is_async_callable(func) else called
    column.__name__ = reward
    return column


def checked(values: Values, name: str, arguments: Mapping[str, Any]) -> Values:
    """`values`, if each is None or finite.

    Args:
        name: the reward's.
        arguments: TRL's arguments to the reward function; they name the rollout.

    Raises:
        NoScore: one is not.
    """
    for row, value in enumerate(values):
        if value is None or math.isfinite(value):
            continue
        completions, ids = arguments.get("completions") or (), arguments.get("id") or ()
        text = f": {completions[row]!r:.300}" if row < len(completions) else ""
        step = int(getattr(arguments.get("trainer_state"), "global_step", 0))
        where = rollout_id(step, PartialState().process_index, row, str(ids[row]) if row < len(ids) else "")
        raise NoScore(
            f"the reward {name!r} is {float(value)} for rollout {where}{text}; return a finite number, or None where it does "
            "not apply"
        )
    return values


def check_reward_models(functions: Sequence[Any], names: Sequence[str], scores_NK: torch.Tensor, step: int) -> None:
    """Reward models always answer, so a NaN from one is an error and not "not applicable".

    Args:
        functions: TRL's reward functions and models, in column order.
        scores_NK: gathered scores.
        step: optimizer steps done.

    Raises:
        NoScore: a model gives NaN or an infinity.
    """
    for k, func in enumerate(functions):
        bad_rows = (~torch.isfinite(scores_NK[:, k])).nonzero()
        if len(bad_rows) and isinstance(func, torch.nn.Module):
            row = int(bad_rows[0])
            raise NoScore(
                f"the reward model {names[k]!r} gives {float(scores_NK[row, k])} for rollout {row} of step {step} (counted over "
                "all processes)"
            )
