"""Batches of rows with and without images, which TRL cannot pass to a processor: a row without images gets an empty list.

Several processes cannot train on them where the vision tower is sharded (ZeRO-3, FSDP): a process whose rows have no image does
not enter the tower, and the others wait there for it. They are refused. So are sampled image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow.compute as pc
from datasets import Dataset

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from rl.reward_validation import rollout_id

if TYPE_CHECKING:
    from rl.trainer import FaithfulGRPOTrainer

Row = dict[str, Any]


def with_image_lists(rows: list[Row]) -> list[Row]:
    """`rows` as they are if all have images or none has such a column; else each with a list `images`, empty where it has none."""
    if not rows or not {"images", "image"} & set(rows[0]):
        return rows
    lists = [_images(row) for row in rows]
    return rows if all(lists) else [{**row, "images": images} for row, images in zip(rows, lists, strict=True)]


def _images(row: Row) -> list[Any]:
    if row.get("images") is not None:
        return list(row["images"])
    return [] if row.get("image") is None else [row["image"]]


def has_images(rows: Sequence[Row], generated: Sequence[Any] | None) -> bool:
    """Whether a forward pass of these rows sees an image.

    Args:
        generated: TRL's images per rollout, those of tools among them; None without any.
    """
    return any(generated or ()) or any(_images(row) for row in rows)


def must_agree(trainer: FaithfulGRPOTrainer) -> bool:
    """Whether all processes of a trainer must enter the vision tower together."""
    several = trainer.accelerator.num_processes > 1
    return several and (trainer.sharding()["zero"] == 3 or bool(trainer.is_fsdp_enabled))


def refuse(what: str) -> NoReturn:
    """Raise UserError for rows with and without images where `must_agree`."""
    raise UserError(
        f"{what} has rows with and without images, and the model is sharded over several processes (ZeRO-3, FSDP): those without "
        "an image would leave the others waiting in the vision tower. Train on rows of one kind, or under DDP or ZeRO-2"
    )


def is_mixed(dataset: Any) -> bool:
    """Whether a data set has rows with and without images, as far as its table says so; no image is decoded."""
    if not isinstance(dataset, Dataset):
        return False
    for name in {"images", "image"} & set(dataset.column_names):
        column = dataset.data.column(name)
        if hasattr(column.type, "value_type"):  # a list
            present = pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)
        else:
            present = pc.is_valid(column)
        if pc.any(present).as_py() and not pc.all(present).as_py():
            return True
    return False


def check_sampled(
    trainer: FaithfulGRPOTrainer, completion_ids: Sequence[Sequence[int]], sampled: Sequence[Sequence[int]] | None
) -> None:
    """A sampled image token would end the next forward pass with "Image features and image tokens do not match".

    Args:
        sampled: per token, whether the model wrote it (1) or a tool or environment (0); None: the model wrote all.

    Raises:
        ValueError: a rollout contains one; names it.
    """
    config: Any = trainer.plain_model.config
    image_token = getattr(config, backbone.assumed(config.model_type).image_token_attribute, None)
    for row, ids in enumerate(completion_ids):
        own = ids if sampled is None else [token for token, mine in zip(ids, sampled[row], strict=True) if mine]
        if image_token in own:
            raise ValueError(
                f"rollout {rollout_id(trainer.state.global_step, trainer.accelerator.process_index, row)} contains an image token; "
                "forbid these tokens to the rollout engine (fgrpo.policy.loading.forbidden_token_ids)"
            )
