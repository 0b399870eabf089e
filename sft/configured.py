"""What a configuration must satisfy so that the anchor stage can run, checked before any stage. Imports no torch."""

from __future__ import annotations

from fgrpo.errors import UserError
from fgrpo.schema import Config


def check_anchor(config: Config) -> None:
    """Check what shows without a model.

    Raises:
        UserError: adapters would leave the token's row as it is.
    """
    if config.sft.lora is not None:
        raise UserError(
            "make anchor trains the embedding of a new token, which adapters leave as it is; set sft.lora=null for this stage (RL may "
            "train adapters on its result)"
        )
