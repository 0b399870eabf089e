"""FaithfulGRPOTrainer: TRL's GRPOTrainer with adaptive constraints (Section 3.3, Eqs. 3 to 6).

A drop-in: `FaithfulGRPOTrainer(model, reward_funcs=[task, c1], constraints=[Constraint("c1", tau=.95)], args=GRPOConfig(…))`.
docs/rl_step.md shows the order of one step. TRL's methods are overridden around `super()`, and none is copied:

- `_generate`: scoring starts as soon as the rollouts exist, beside the log-prob passes;
- `_calculate_rewards`: keeps the gathered scores with their failures;
- `_generate_and_score_completions`: computes the `Step` (`rl.step`), puts its advantages in place of TRL's, and takes the
  multipliers' step. TRL's own aggregation of rewards trains nothing, whatever `args` say of it; with
  `multi_objective_aggregation="normalize_then_sum"` a test compares it with ours (the last bits of float32 may differ).

The multipliers are part of every checkpoint (`duals.json`). A step in which too many judgements fail stops the run after
saving a checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fgrpo.errors import UserError
from fgrpo.policy import backbone
from fgrpo.training import checkpoints, stored
from fgrpo.training.finite import NotFinite
from rl.advantage import Baseline, Coupling, Masked, Whiten
from rl.checks import check_config, check_constraints, check_dataset
from rl.dual import Constraint, DualAscent
from rl.failures import FailedJudgements, over_the_limit
from rl.finished_step import FinishedStep
from rl.passes import LogprobPasses, Rows
from rl.reward_validation import check_reward_models, guarded, rollout_id
from rl.scored_batch import Gathered, gather
from rl.step import Step, StepOptions, fgrpo_step

DUALS = "duals.json"
NEEDED = (DUALS, checkpoints.STATE)  # of a checkpoint


class Scorer(Protocol):
    """Scores rollouts ahead of the reward functions, which then wait for what was started (see `rl.scoring`)."""

    def start(
        self,
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[Any],
        ids: Sequence[Sequence[int]],
        trainer: GRPOTrainer,
    ) -> None: ...


class FaithfulGRPOTrainer(checkpoints.AtomicCheckpoints, LogprobPasses):
    """See the module's docstring. Arguments beyond TRL's, all by keyword:

    Args:
        reward_funcs: the task's reward first. Each returns a list with a number or None per completion, or an
            `rl.scored_batch.ScoreColumn`, which also says what failed.
        constraints: one for each reward function but the first.
        dual: the multipliers; made from `constraints` (adaptive) if not given.
        coupling: None decouples (Eq. 6); "additive" or "multiplicative" make one reward of all columns first (Table 2),
            and take no constraints.
        masked, baseline, whiten: options of `rl.advantage.combine`.
        scorer: starts judging as soon as the rollouts exist.
        max_failed_share: share of one reward's judgements of a generation batch that may fail; one failure is always allowed
            unless it is 0. Beyond it the run stops.
        rows: how rollouts pass through the model (`rl.passes`); None: "shared" with constraints, else "trl".

    Attributes:
        dual: the multipliers.
        last_step: the `Step` of the last generation batch of training, None before the first.

    Raises:
        ValueError: a configuration that would silently not be FGRPO.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *others: Any,
        constraints: Sequence[Constraint] = (),
        dual: DualAscent | None = None,
        coupling: Coupling | None = None,
        masked: Masked = "exclude",
        baseline: Baseline = "group",
        whiten: Whiten = "sequence",
        scorer: Scorer | None = None,
        max_failed_share: float = 1.0,
        rows: Rows | None = None,
        **more: Any,
    ) -> None:
        args = GRPOConfig() if args is None else args
        check_config(args)
        check_dataset(train_dataset)
        funcs = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs] * (reward_funcs is not None)
        self.dual = dual if dual is not None else DualAscent(constraints)
        self.coupling, self.masked, self.baseline, self.whiten = coupling, masked, baseline, whiten
        self.scorer, self.max_failed_share = scorer, max_failed_share
        self.rows = rows or ("shared" if self.dual.constraints else "trl")
        self.seconds = {"generation": 0.0, "judging": 0.0, "rollout": 0.0}  # since the last `take_seconds`
        self.last_step: Step | None = None
        self._finished: FinishedStep | None = None
        self._inputs: Sequence[dict[str, Any]] = ()
        self._returned: dict[str, Sequence[float | None]] = {}  # this batch's columns, by reward name
        self._gathered: Gathered | None = None
        self._stops: list[UserError] = []  # what ended this batch's judging in this process
        guarded_funcs = [guarded(func, self._returned.__setitem__, self._stops.append) for func in funcs]
        super().__init__(model, guarded_funcs, args, train_dataset, *others, **more)
        check_constraints(self.reward_func_names, self.dual, constraints, coupling)

    @property
    def _is_training(self) -> bool:
        return self.model is not None and bool(self.model.training)

    @property
    def _group_size(self) -> int:
        return int((self.num_generations if self._is_training else self.num_generations_eval) or 1)

    # -- the seam --------------------------------------------------------------------------------------------------------

    def _generate(self, prompts: Any) -> Any:
        """TRL's generation; judging starts as soon as it returns, so that it runs beside the log-prob passes."""
        began = time.perf_counter()
        result = super()._generate(prompts)
        self.seconds["generation"] += time.perf_counter() - began
        _, completion_ids, _, completions, *_ = result
        self._check_sampled(completion_ids)
        if self.scorer is not None:
            self.scorer.start(self._inputs, completions, completion_ids, self)
        return result

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's gathered scores (N, K), NaN = no score; they are kept together with their failures."""
        began = time.perf_counter()
        self._returned.clear()
        self._stops.clear()
        scores_NK: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._stop_if_refused()
        check_reward_models(self.reward_funcs, self.reward_func_names, scores_NK, self.state.global_step)
        self._gathered = gather(scores_NK, self._returned, self.reward_func_names, len(prompts))
        self.seconds["judging"] += time.perf_counter() - began
        return scores_NK

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with the advantages of `rl.step`; in training the multipliers take their step."""
        began = time.perf_counter()
        self._inputs = inputs
        weights = self.dual.weights() if self.coupling is None else [1.0] * len(self.reward_func_names)
        self.reward_weights = torch.tensor(weights, dtype=torch.float32)  # λ_t, for what TRL logs itself
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        assert self._gathered is not None
        gathered, self._gathered = self._gathered, None
        self._stop_if_failed(gathered)
        step = fgrpo_step(
            gathered.scores_NK,
            gathered.failed_NK,
            self.dual,
            self._step_options(),
            lengths_N=self.accelerator.gather(output["completion_mask"].sum(dim=1)) if self.whiten == "token" else None,
            rollouts=gathered.batches,
        )
        first_row = self.accelerator.process_index * len(inputs)
        output["advantages"] = step.advantages_N[first_row : first_row + len(inputs)]
        self._log_step(step)
        if self._is_training:
            self.dual.load_state_dict(step.dual_state)
            self.last_step = step
        self.seconds["rollout"] += time.perf_counter() - began
        return output

    def _step_options(self) -> StepOptions:
        return StepOptions(
            group_size=self._group_size,
            coupling=self.coupling,
            masked=self.masked,
            baseline=self.baseline,
            whiten=self.whiten,
            names=tuple(self.reward_func_names),
            training=self._is_training,
        )

    def _log_step(self, step: Step) -> None:
        """The step's figures beside TRL's; its reward and deviation replace TRL's (`frac_reward_zero_std` remains TRL's own)."""
        figures = self._metrics["train" if self._is_training else "eval"]
        for key in ("reward", "reward_std"):
            figures[key].pop()
        for key, value in step.metrics.items():
            figures[key].append(value)
        shown: Any = self._logs["advantages"]
        for _ in range(min(len(step.advantages_N), len(shown))):
            shown.pop()
        shown.extend(step.advantages_N.tolist())

    # -- checks of a batch -------------------------------------------------------------------------------------------------

    def _check_sampled(self, completion_ids: Sequence[Sequence[int]]) -> None:
        """A sampled image token would end the next forward pass with "Image features and image tokens do not match"."""
        config: Any = self.plain_model.config
        image_ids = backbone.assumed(config.model_type).placeholder_ids(config)
        for row, ids in enumerate(completion_ids):
            if not image_ids.isdisjoint(ids):
                raise ValueError(
                    f"rollout {rollout_id(self.state.global_step, self.accelerator.process_index, row)} contains an image token; "
                    "forbid these tokens to the rollout engine (fgrpo.policy.loading.forbidden_token_ids)"
                )

    def _stop_if_failed(self, gathered: Gathered) -> None:
        """Raise `FailedJudgements` where a reward's failures exceed its allowed share."""
        wrong = over_the_limit(gathered, self.reward_func_names, self.max_failed_share)
        if wrong is not None:
            self._save_where_possible()
            raise FailedJudgements(
                f"step {self.state.global_step + 1}: {wrong}; nothing was trained on them. Fix the judge, then rerun to resume"
            )

    def _stop_if_refused(self) -> None:
        """Save, then raise, on every process, what ended the judging of one (a refused key, an exhausted quota)."""
        if self._anywhere(bool(self._stops)):
            self._save_where_possible()
            raise (*self._stops, UserError("the judge of another process refused to work; see its message"))[0]

    def _maybe_log_save_evaluate(self, *args: Any, **more: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **more)
        self._finished = FinishedStep.of(self)

    def _save_where_possible(self) -> None:
        """A checkpoint of the last finished step, unless there is one or this process has finished no step.

        What the discarded generation changed is undone, so that a resumed run equals an undisturbed one.
        """
        present = Path(self._get_output_dir(None)) / f"{checkpoints.PREFIX}-{self.state.global_step}"
        if self._finished is not None and not present.exists():
            self._finished.restore(self)
            self._save_checkpoint(self.model, trial=None)

    # -- what others read --------------------------------------------------------------------------------------------------

    def forbidden_ids(self) -> Sequence[int]:
        """Token ids that the rollout engine is configured never to sample."""
        if self.use_vllm:
            bias: dict[Any, float] = (getattr(self.args, "generation_kwargs", None) or {}).get("logit_bias") or {}
            return [int(token) for token, value in bias.items() if value <= -100]
        return list(getattr(self.generation_config, "suppress_tokens", None) or ())

    def engine_logprobs(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The rollout engine's own log-probabilities (B, T) of a batch, NaN where it has none; None if it reports none."""
        return batch.get("sampling_per_token_logps")

    def take_seconds(self) -> dict[str, float]:
        """Seconds since the last call that went to generation, to waiting for judges and to the log-prob passes."""
        spent = dict(self.seconds)
        passes = spent.pop("rollout") - spent["generation"] - spent["judging"]
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return {**spent, "logprobs": max(passes, 0.0)}

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def _write_extra(self, folder: Path) -> None:
        try:
            text = json.dumps(self.dual.state_dict(), indent=1, allow_nan=False)
        except ValueError as error:
            raise NotFinite(self.state.global_step, "a multiplier is not finite", "nothing was saved") from error
        (folder / DUALS).write_text(text + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / DUALS
        if not path.exists():
            raise checkpoints.WrongCheckpoint(
                f"{checkpoint} has no {DUALS}: this trainer did not write it, and its multipliers are lost"
            )
        try:
            self.dual.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise checkpoints.WrongCheckpoint(
                f"{path}: {error}; delete that checkpoint, or give this run its own folder"
            ) from error


def resume_point(folder: str | Path) -> Path | None:
    """The newest whole checkpoint with its multipliers, None without checkpoints; damaged ones are named and skipped.

    Raises:
        WrongCheckpoint: there are checkpoints, and none is whole.
    """
    return stored.resume_point(folder, NEEDED)
