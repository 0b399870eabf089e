"""The `rl` section of a configuration: the method's constraints and multipliers, and how the policy is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fgrpo.schema_base import (
    AutoOrOff,
    Count,
    Lora,
    NonFinite,
    Positive,
    Rate,
    Scheduler,
    Section,
    Share,
    Tracker,
    check_nonfinite,
)


class Dual(Section):
    """Dual ascent on the multipliers (Eqs. 4 and 5, Table 6); `fixed` never steps (Table 3); `kp`, `kd` belong to `pid`.

    `lr`, `lam_init`, `lam_max` and `min_applicable` are the defaults of the constraints.
    """

    kind: Literal["adaptive", "fixed", "pid"]
    lr: Rate
    kp: Annotated[float, Field(ge=0.0)]
    kd: Annotated[float, Field(ge=0.0)]
    lam_init: float
    lam_max: Rate
    min_applicable: Count


class Constraint(Section):
    """One constraint, E[reward] >= `tau`: the threshold in the reward's own unit, and what differs from `rl.dual`.

    With `indicator` it is E[1[reward >= indicator]] >= `tau`, and 1[…] is the column of Eq. 6: `tau` is then a share.
    """

    tau: Annotated[float, Field(allow_inf_nan=False)]
    indicator: Annotated[float, Field(allow_inf_nan=False)] | None = None
    lr: Rate | None = None
    lam_init: float | None = None
    lam_max: Rate | None = None
    min_applicable: Count | None = None


class Auxiliary(Section):
    """One loss of rl/auxiliary beside the policy loss: its factor, and the options of its file."""

    weight: Annotated[float, Field(allow_inf_nan=False)]
    options: dict[str, Any] = Field(default_factory=dict)


class TokenWeights(Section):
    """VPPO's factors of the tokens' advantages: see `rl.token_weights.Dependence`."""

    keep: Share = 0.4
    lowest: Share = 0.9
    blank: Share = 0.5


class Reference(Section):
    """The reference policy as a moving average: after every `every` updates, reference = `decay` reference + (1 - `decay`) policy."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    every: Positive


class Vllm(Section):
    """Rollouts by vLLM (`rl.rollout_engine`; rl/vllm_rollouts.py): where its server is, what a colocated engine may take.

    `server` is an http address or an address file, `sync_port` the port over which weights go from a GPU, `reply_s` what one
    answer may take; `memory_share` and `tensor_parallel` are a colocated engine's. Where the log-probabilities of engine and
    trainer differ by more than `max_logprob_diff` a token, nothing is trained (None: 0.01 in float32, 0.05 in bf16).
    """

    server: str = "runs/{preset}/serve/rollouts.json"
    sync_port: Annotated[int, Field(gt=0, lt=65536)] = 51216
    start_s: Rate = 240.0
    reply_s: Rate = 1800.0
    memory_share: Share = 0.3
    tensor_parallel: Positive = 1
    max_logprob_diff: Rate | None = None


class Probing(Section):
    """How the policy is measured for rewards with `needs` (rl/probes; docs/probes.md), and how these read it. All of it is ours.

    `fill` is what a blanked cell shows: the mean colour ("zero", after normalisation), "black", or the mean colour of the cells
    around the region ("ring"). `dilation` grows the annotated boxes by so many cells. `controls` is the number of other regions
    of that shape, `patch_share` the probability of each cell in a random change. `scope`: the tokens of the evidence margin;
    `margin_scale`: its unit, in nats. `layers`: whose attention is read. A response with less than `least_dependence` nats in all
    has no attention score.
    """

    fill: Literal["zero", "black", "ring"] = "zero"
    dilation: Count = 0
    controls: Positive = 2
    patch_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    scope: Literal["answer", "all"] = "all"
    margin_scale: Rate = 0.2
    layers: Literal["two_thirds", "last_third", "all"] | tuple[Count, ...] = "two_thirds"
    least_dependence: Annotated[float, Field(ge=0.0)] = 0.1


class Rl(Section):
    """GRPO and FGRPO (Section 3.3, Tables 2, 3, 5 and 6), and the rival methods of docs/rivals.md.

    `start` is the stage whose final model is trained. `constraints` are named by their rewards; in a layer, null removes one of a lower layer. `combine` is "decoupled" (each
    constraint has a multiplier), "additive" or "multiplicative" (their rewards are coupled with the task's, without multipliers
    or thresholds), or "none": the task reward alone, whatever constraints the layers name. `unscorable` and `grounding_mean`:
    see `rewards.base.RewardContext`; a reward that is only monitored keeps "not_applicable". `nonfinite` is as in `sft`.
    `shared_prefix`: see `rl.passes`. `task_reward` is the reward of column 0; `auxiliary` names losses of rl/auxiliary, where
    null removes one of a lower layer. `reference` None: the reference policy stays the initial one.
    """

    start: Literal["sft", "anchor"] = "sft"
    constraints: dict[str, Constraint]
    dual: Dual
    combine: Literal["decoupled", "additive", "multiplicative", "none"]
    task_reward: str = "task"
    auxiliary: dict[str, Auxiliary] = Field(default_factory=dict)
    token_weights: TokenWeights | None = None
    reference: Reference | None = None
    monitor: tuple[str, ...]
    masked: Literal["exclude", "zero"]
    baseline: Literal["group", "batch"]
    whiten: Literal["sequence", "token", "none"]
    box_normaliser: Literal["max", "gt", "matched"]
    unscorable: Literal["zero", "not_applicable"] = "zero"
    grounding_mean: Literal["sentences", "claims"] = "sentences"
    probes: Probing = Probing()
    max_failed_share: Share
    epochs: Rate
    max_steps: int
    learning_rate: Rate
    weight_decay: float
    warmup_ratio: Share
    scheduler: Scheduler
    group_size: Annotated[int, Field(ge=2)]
    rollout_batch: Positive
    global_batch: Positive
    micro_batch: Positive
    kl_coef: float
    epsilon: Rate
    epsilon_high: Rate
    max_grad_norm: Rate
    max_prompt_length: Positive
    max_response_length: Positive
    temperature: Rate
    loss: Literal["grpo", "dapo", "bnpo", "dr_grpo"]
    freeze_vision: bool
    freeze_projector: bool
    precision: Literal["bf16", "fp32"]
    attention: Literal["flash_attention_2", "sdpa", "eager"]
    gradient_checkpointing: bool
    shared_prefix: AutoOrOff = "auto"
    rollout_engine: Literal["transformers", "vllm-server", "vllm-colocate"]
    vllm: Vllm = Vllm()
    save_steps: Positive
    keep_checkpoints: Positive | None = 2
    deepspeed: str | None
    lora: Lora | None
    report_to: Tracker
    nonfinite: NonFinite

    @model_validator(mode="after")
    def _skips_only_without_deepspeed(self) -> Self:
        check_nonfinite(self.nonfinite, self.deepspeed)
        return self

    @model_validator(mode="after")
    def _a_reference_that_moves_is_whole_and_exact(self) -> Self:
        if self.reference is None:
            return self
        reasons = {
            "rl.kl_coef=0 has no reference policy": self.kl_coef == 0,
            "with rl.lora the reference is the policy without its adapters": self.lora is not None,
            "rl.deepspeed keeps the reference in shards or in bf16, where an average by small steps does not move": self.deepspeed
            is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"rl.reference cannot move: {reason}; set rl.reference=null")
        return self

    @model_validator(mode="after")
    def _indicators_have_multipliers(self) -> Self:
        given = [name for name, constraint in self.constraints.items() if constraint.indicator is not None]
        if given and self.combine != "decoupled":
            raise ValueError(
                f"rl.constraints.{given[0]}.indicator has no effect with rl.combine={self.combine}, which has no constraints; "
                "set rl.combine=decoupled or leave it out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_removed_losses(cls, layers: Any) -> Any:
        if not isinstance(layers, dict) or not isinstance(layers.get("auxiliary"), dict):
            return layers
        present = {name: loss for name, loss in layers["auxiliary"].items() if loss is not None}
        return {**layers, "auxiliary": present}

    @model_validator(mode="before")
    @classmethod
    def _without_removed_constraints(cls, layers: Any) -> Any:
        if not isinstance(layers, dict) or not isinstance(layers.get("constraints"), dict | None):
            return layers
        constraints = {} if layers.get("combine") == "none" else layers.get("constraints") or {}
        present = {name: constraint for name, constraint in constraints.items() if constraint is not None}
        return {**layers, "constraints": present}
