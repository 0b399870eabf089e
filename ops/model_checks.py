"""What a preset's models need of its configuration: the frame in which their family writes boxes."""

from __future__ import annotations

from collections.abc import Iterator

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.schema import Config
from ops.connectivity import Finding
from ops.memory_estimate import configuration


def frames(config: Config) -> Iterator[Finding]:
    """Compare `policy.box_frame`, which prompts ask for and rewards read, with the frame that base model and teacher know."""
    asked = config.policy.box_frame
    for role in ("base", "teacher"):
        model = str(getattr(config.models, role))
        try:
            family = backbone.lookup(configuration(model).get("model_type"), model)
        except UserError as error:
            yield Finding("warn", f"the family of the {role} model is unknown: {error}", "# docs/backbones.md")
            continue
        if family.box_frame == asked:
            yield Finding("ok", f"{role} model {model} ({family.title}) writes boxes in the frame {asked}")
        else:
            yield Finding(
                "warn",
                f"{role} model {model} ({family.title}) writes boxes in the frame {family.box_frame}, and policy.box_frame is {asked}",
                f"SET=policy.box_frame={family.box_frame}  # else SFT must teach the other frame (docs/backbones.md)",
            )
