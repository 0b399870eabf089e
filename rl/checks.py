"""What the drop-in trainer refuses, warns about, and replaces: the names of constraints, batch sizes, TRL's options."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from rl.columns import Columns
from rl.dual import Constraint, DualAscent, enough


def checked_constraints(given: Any) -> tuple[Constraint, ...]:
    """The constraints that the trainer was given: one, or several.

    Raises:
        TypeError: something that is not a `Constraint` (shows how to write one).
    """
    constraints = (given,) if isinstance(given, (Constraint, str)) else tuple(given)
    for odd in constraints:
        if not isinstance(odd, Constraint):
            tau = given[odd] if isinstance(given, dict) else "…"
            name = odd if isinstance(odd, str) else "<reward>"
            raise TypeError(f"{odd!r} is no constraint; write constraints=[Constraint({name!r}, tau={tau}), …]")
    return constraints


def check_names(
    names: Sequence[str],
    dual: DualAscent,
    constraints: Sequence[Constraint],
    coupling: str | None,
    more_to_come: bool = False,
) -> None:
    """Each constraint has a reward function, and one is left for the task; a coupled reward has no constraints.

    Args:
        names: of the reward functions.
        constraints: what the trainer was given; `dual` is made of them, or given.
        more_to_come: whether an environment may add reward functions, whose names are not known yet.

    Raises:
        ValueError: names what does not fit and what to do.
    """
    constrained = [c.reward for c in dual.constraints]
    if constraints and [c.reward for c in constraints] != constrained:
        raise ValueError("pass either constraints or a dual made of the same ones, not two different sets")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"two reward functions are called {twice[0]!r} (lambdas and partials have the name of what they wrap): pass "
            f"reward_names=[…], one name for each of the {len(names)} reward functions"
        )
    if coupling is not None:
        if coupling not in ("additive", "multiplicative"):
            raise ValueError(f"coupling is None, 'additive' or 'multiplicative', got {coupling!r}")
        if constrained:
            raise ValueError(
                f"a coupled reward ({coupling}) has no multipliers; leave out the constraints {constrained}"
            )
    if more_to_come:
        return
    unknown = [name for name in constrained if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        raise ValueError(
            f"no reward function is called {unknown[0]!r}, as a constraint requires; there are {list(names)}"
            + (f"; did you mean {near[0]!r}?" if near else ". Other names can be given with reward_names=[…]")
        )
    if not set(names) - set(constrained):
        raise ValueError(
            f"every reward function has a constraint ({constrained}): the task reward, which has none, is missing; add it to "
            "reward_funcs"
        )


def out_of_reach(dual: DualAscent, batch: int) -> list[str]:
    """What to say of multipliers that will hardly move.

    Args:
        batch: rollouts of a generation batch, over all processes.
    """
    messages = []
    for constraint in dual.constraints if dual.kind != "fixed" else ():
        needed, default = constraint.needed(batch), enough(batch)
        if needed <= (batch - 1 if constraint.min_applicable is None else batch / 2):
            continue
        advice = f"leave min_applicable out (then {default} are enough), or " if default < needed else ""
        reach = f"all {batch}" if needed == batch else f"{needed} of {batch}"
        messages.append(
            f"λ of {constraint.reward} can never move: it needs {needed} scored rollouts (min_applicable), and a generation batch "
            f"has {batch}; {advice}enlarge the generation batch"
            if needed > batch
            else f"λ of {constraint.reward} moves only by batches in which {reach} rollouts have a score; {advice}enlarge the "
            "generation batch"
        )
    return messages


def replaced_options(args: GRPOConfig, columns: Columns, names: Sequence[str], coupling: str | None) -> list[str]:
    """TRL's options that are set in `args` and have no effect on the advantages, and what takes their place."""
    replaced = []
    if args.reward_weights is not None and coupling is not None:
        replaced.append(f"reward_weights by the {coupling} coupling")
    elif args.reward_weights is not None:
        weights = [f"{names[k]}: {args.reward_weights[k]:g}" for k in columns.constraints]
        replaced += [f"reward_weights of constraints ({', '.join(weights)}) by their multipliers"] if weights else []
    if args.scale_rewards not in ("group", True):
        replaced.append(f"scale_rewards={args.scale_rewards!r} by the deviation of each reward in its group")
    return replaced


def check_dataset(dataset: Any) -> None:
    """Raise ValueError if the training data set is empty."""
    if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError("the training data set is empty")
