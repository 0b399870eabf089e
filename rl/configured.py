"""What a method's configuration must satisfy, checked before any stage. Imports torch only for a method with auxiliary losses."""

from __future__ import annotations

from fgrpo.errors import UserError, unknown
from fgrpo.plugins import plugin_names
from fgrpo.schema import Config
from rewards import base

NO_GROUPS = (
    "a score of {name} depends on its group of rollouts, and {processes} processes cannot hold rl.rollout_batch = {batch} complete "
    "groups evenly; make rl.rollout_batch a multiple of the number of processes"
)


NO_COLUMN = (
    "{key}: the anchoring loss cannot be a column of the advantages. It depends on the prompt alone, so all rollouts of a group have "
    "one value, and its group-normalised advantage is 0; set rl.auxiliary.anchoring (at_most makes it a constraint on the loss)"
)


def check_configured(config: Config) -> None:
    """Check that the method's rewards, monitors and auxiliary losses exist, and that they have the options that are set.

    Raises:
        UserError: names the key and what to do.
    """
    rl = config.rl
    columns = {"rl.constraints": rl.constraints, "rl.monitor": rl.monitor, "rl.task_reward": (rl.task_reward,)}
    for key, names in columns.items():
        if "anchoring" in names:
            raise UserError(NO_COLUMN.format(key=key))
    base.check_configured(config)
    known = plugin_names("rl.auxiliary", "AUXILIARY")
    for name, loss in rl.auxiliary.items():
        if name not in known:
            raise unknown("auxiliary loss", name, known)
        from rl.auxiliary_loss import load

        load(name, loss.weight, loss.options)


def check_groups(rewards: tuple[str, ...], rollout_batch: int, processes: int) -> None:
    """Check that each process holds complete groups, if a reward sees them.

    Args:
        rewards: names of the rewards that do (`rl.scoring.RolloutScorer.needs_groups`).
        rollout_batch: prompts per generation, over all processes.

    Raises:
        UserError: processes would share a group.
    """
    if rewards and rollout_batch % processes:
        raise UserError(NO_GROUPS.format(name=rewards[0], processes=processes, batch=rollout_batch))
