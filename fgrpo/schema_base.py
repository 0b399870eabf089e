"""What the sections of a configuration share: bounded numbers, the base class, and the section of adapters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # name of an environment variable
EngineKind = Literal["transformers", "vllm", "openai"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
NonFinite = Literal["stop", "skip"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
# YAML reads off as false
AutoOrOff = Annotated[Literal["auto", "off"], BeforeValidator(lambda value: "off" if value is False else value)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Pixels(Section):
    """The least and the most pixels of an image that a model sees; None = the bound of its own processor."""

    min: Positive | None = None
    max: Positive | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(
                f"min ({self.min:,} pixels) is more than max ({self.max:,}); swap them, or leave one out (null)"
            )
        return self

    @property
    def is_set(self) -> bool:
        """Whether a bound differs from the processor's own."""
        return self.min is not None or self.max is not None


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Positive
    alpha: Positive
    dropout: Share


def check_nonfinite(nonfinite: NonFinite, deepspeed: str | None) -> None:
    """Refuse `nonfinite: skip` under DeepSpeed, which updates the weights inside the backward pass.

    Raises:
        ValueError: both are set.
    """
    if nonfinite == "skip" and deepspeed is not None:
        raise ValueError(
            "nonfinite=skip is not possible under DeepSpeed, which cannot leave a step out; set nonfinite=stop"
        )
