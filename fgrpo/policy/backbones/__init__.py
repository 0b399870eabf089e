"""Model families, one file each: `<model_type>.py` with a constant `BACKBONE` (see `fgrpo.policy.backbone`)."""

DEFAULT = "qwen2_5_vl"  # the family of a model whose config.json is not at hand, such as one that is only served
