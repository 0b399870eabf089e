"""What a reward function may return: None (does not apply) or a finite number, and nothing else.

TRL turns None into NaN and sums with `nansum`, so a NaN or an infinity that a reward function returns by mistake would pass
for "not applicable", or spoil a batch. `guarded` names it instead: the reward, the rollout, and what the rollout says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from trl.trainer.grpo_trainer import get_callable_name, is_async_callable

from fgrpo.errors import UserError


class NoScore(UserError, ValueError):
    """A reward gave what is no score."""


def rollout_id(step: int, rank: int, row: int, sample: str = "") -> str:
    """ "<step>/<process>/<row of its batch>", and the sample's id where there is one."""
    return f"{step:06d}/{rank}/{row:04d}" + (f"/{sample}" if sample else "")


def guarded(func: Any) -> Any:
    """A reward function whose values are checked; reward models and names of models, which TRL runs itself, stay as they are.

    The result raises `NoScore` for a value that is neither None nor a finite number.
    """
    if isinstance(func, (str, torch.nn.Module)) or not callable(func):
        return func
    name = get_callable_name(func)

    async def awaited(*args: Any, **given: Any) -> Any:
        return checked(await func(*args, **given), name, given)

    def called(*args: Any, **given: Any) -> Any:
        return checked(func(*args, **given), name, given)

    column: Any = awaited if is_async_callable(func) else called
    column.__name__ = name
    return column


def checked(values: Sequence[float | None], name: str, given: Mapping[str, Any]) -> Sequence[float | None]:
    """`values`, if each is None or finite. `given` are TRL's arguments to the reward function.

    Raises:
        NoScore: one is not; says which rollout's.
    """
    for row, value in enumerate(values):
        if value is None or math.isfinite(value):
            continue
        completions, ids = given.get("completions") or (), given.get("id") or ()
        text = f": {completions[row]!r:.300}" if row < len(completions) else ""
        step = int(getattr(given.get("trainer_state"), "global_step", 0))
        where = rollout_id(step, PartialState().process_index, row, str(ids[row]) if row < len(ids) else "")
        raise NoScore(
            f"the reward {name!r} is {float(value)} for rollout {where}{text}; a reward is a finite number, or None where it "
            "does not apply"
        )
    return values
