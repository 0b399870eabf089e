"""FaithfulGRPOTrainer: TRL's GRPOTrainer with adaptive constraints (Section 3.3, Eqs. 3 to 6).

A drop-in: `FaithfulGRPOTrainer(model, reward_funcs=[task, c1], constraints=[Constraint("c1", tau=.95)], args=GRPOConfig(…))`.
docs/drop_in.md says what changes for a TRL script, docs/rl_step.md shows the order of one step. TRL's methods are overridden
around `super()`, and none is copied:

- `_generate`: scoring starts as soon as the rollouts exist, beside the log-prob passes;
- `_calculate_rewards`: keeps the gathered scores with their failures;
- `_generate_and_score_completions`: computes the `Step` (`rl.step`), puts its advantages in place of TRL's, and takes the
  multipliers' step. TRL's own aggregation of rewards trains nothing, whatever `args` say of it; with
  `multi_objective_aggregation="normalize_then_sum"` a test compares it with ours (the last bits of float32 may differ).

Without constraints and options of its own the trainer is plain: advantages, rewards and log are TRL's.

The multipliers are part of every checkpoint (`duals.json`). A step in which too many judgements fail stops the run after
saving a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fgrpo.errors import UserError
from fgrpo.training import checkpoints, stored
from rl import mixed_batches
from rl.advantage import Baseline, Coupling, Masked, Whiten
from rl.alarms import Alarms
from rl.auxiliary_loss import AuxiliaryLoss, AuxiliaryLosses, check_unique
from rl.checks import check_dataset, check_names, checked_constraints, out_of_reach, replaced_options
from rl.columns import Columns, names_of
from rl.dual import Constraint, DualAscent
from rl.failures import FailedJudgements, over_the_limit
from rl.finished_step import FinishedStep
from rl.image_memo import prepared_once
from rl.multiplier_checkpoints import DUALS, MultiplierCheckpoints
from rl.paper import PAPER
from rl.passes import Rows
from rl.probes.trainer import ProbedRollouts
from rl.reward_validation import check_reward_models, guarded
from rl.scored_batch import Gathered, ScoreColumn, gather
from rl.scorer import Scorer
from rl.step import Step, StepOptions, fgrpo_step
from rl.token_weights import TokenWeights, weighted

NEEDED = (DUALS, checkpoints.STATE)  # of a checkpoint


class FaithfulGRPOTrainer(MultiplierCheckpoints, AuxiliaryLosses, ProbedRollouts):
    """See the module's docstring. Arguments beyond TRL's, all by keyword:

    Args:
        reward_funcs: each returns a number or None per completion, or an `rl.scored_batch.ScoreColumn`, which also says what
            failed. Those that no constraint names are the task's (`rl.columns`).
        constraints: one, or several; each names a reward function.
        reward_names: names of the reward functions, where their own do not tell them apart (lambdas, partials).
        dual: the multipliers; made from `constraints` (adaptive) if not given.
        coupling: None decouples (Eq. 6); "additive" or "multiplicative" make one reward of all columns first (Table 2),
            and take no constraints.
        masked, baseline, whiten: options of `rl.advantage.combine`; None: "exclude", "group", "sequence".
        scorer: starts judging as soon as the rollouts exist.
        max_failed_share: share of one reward's judgements of a generation batch that may fail; one failure is always allowed
            unless it is 0. Beyond it the run stops.
        rows: how rollouts pass through the model (`rl.passes`); None: "shared" with constraints, else "trl".
        auxiliary: losses beside the policy loss (`rl.auxiliary_loss`).
        token_weights: factors of each token's advantage (`rl.token_weights`).

    Attributes:
        dual: the multipliers.
        is_plain: whether the trainer is TRL's: it has neither constraints nor an option of those above.
        last_step: the `Step` of the last generation batch of training, None before the first.
        last_alarms: what `rl.alarms` said of it.
        shows_alarms: whether alarms are logged as warnings.

    Raises:
        ValueError: constraints and reward functions do not fit one another.
    """

    _tag_names = ["trl", "grpo", "faithful-grpo"]  # noqa: RUF012 (TRL's own form)
    _name = "Faithful GRPO"
    _paper = PAPER

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *others: Any,
        constraints: Constraint | Sequence[Constraint] = (),
        reward_names: Sequence[str] | None = None,
        dual: DualAscent | None = None,
        coupling: Coupling | None = None,
        masked: Masked | None = None,
        baseline: Baseline | None = None,
        whiten: Whiten | None = None,
        scorer: Scorer | None = None,
        max_failed_share: float = 1.0,
        rows: Rows | None = None,
        auxiliary: Sequence[AuxiliaryLoss] = (),
        token_weights: TokenWeights | None = None,
        **more: Any,
    ) -> None:
        check_dataset(train_dataset)
        functions = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        functions = [function for function in functions if function is not None]
        names = names_of(functions, reward_names)
        constraints = checked_constraints(constraints)
        options = (dual, coupling, masked, baseline, whiten, scorer, auxiliary or None, token_weights)
        self.is_plain = not constraints and all(option is None for option in options)
        self.dual = dual if dual is not None else DualAscent(constraints)
        self.coupling, self.scorer, self.max_failed_share = coupling, scorer, max_failed_share
        self.auxiliary, self.token_weights = tuple(auxiliary), token_weights
        check_unique(self.auxiliary)
        self.masked: Masked = masked or "exclude"
        self.baseline: Baseline = baseline or "group"
        self.whiten: Whiten = whiten or "sequence"
        self.rows = rows or ("shared" if self.dual.constraints else "trl")
        self.seconds = {"generation": 0.0, "judging": 0.0, "rollout": 0.0}  # since the last `take_seconds`
        self.last_step: Step | None = None
        self.last_alarms: Sequence[str] = ()
        self.shows_alarms = True
        self._alarms = Alarms.of_dual(self.dual)
        self._finished: FinishedStep | None = None
        self._before_step: Mapping[str, Any] | None = None  # the multipliers before the last generation batch's step
        self._inputs: Sequence[dict[str, Any]] = ()
        self._images_once = ExitStack()
        self._returned: dict[str, Sequence[float | None]] = {}  # this batch's columns, by reward name
        self._gathered: Gathered | None = None
        self._said_unknown = False
        self._stops: list[UserError] = []  # what ended this batch's judging in this process
        if self.is_plain:
            self._tag_names, self._name, self._paper = GRPOTrainer._tag_names, GRPOTrainer._name, GRPOTrainer._paper
        else:  # before the model is loaded
            check_names(names, self.dual, constraints, coupling, more_to_come=bool(more.get("environment_factory")))
        super().__init__(model, functions or None, args, train_dataset, *others, **more)
        self.reward_func_names[: len(names)] = names
        self._must_agree = mixed_batches.must_agree(self)
        if self._must_agree and mixed_batches.is_mixed(train_dataset):
            mixed_batches.refuse("the training data set")
        self._columns = Columns.of(self.reward_func_names, [c.reward for c in self.dual.constraints])
        if not self.is_plain:
            check_names(self.reward_func_names, self.dual, constraints, coupling)
            self._take_over()
        elif len(self.reward_func_names) > 1 or max_failed_share != 1:
            self.say(
                f"FaithfulGRPOTrainer without constraints is GRPOTrainer: its rewards ({', '.join(self.reward_func_names)}) are "
                f"summed, and max_failed_share has no effect. constraints=[Constraint({self.reward_func_names[-1]!r}, tau=…)] "
                "makes a constraint of the last"
            )

    def _take_over(self) -> None:
        """Guard the reward functions, set what Eq. 6 needs, and say once what that replaces."""
        self.reward_funcs = [
            guarded(function, self._returned.__setitem__, self._stops.append, name)
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self.check_probes()
        args: Any = self.args
        self._task_weights = self.reward_weights.clone()
        replaced = replaced_options(args, self._columns, self.reward_func_names, self.coupling)
        self.multi_objective_aggregation, self.scale_rewards = "normalize_then_sum", "group"  # of TRL's own figures
        if len(self._columns.task) > 1 and self.coupling is None:
            parts = [f"{self._task_weights[k]:g} × {self.reward_func_names[k]}" for k in self._columns.task]
            self.say(f"the task reward is {' + '.join(parts)}: no constraint names these reward functions")
        if replaced:
            self.say(f"Faithful GRPO replaces {'; '.join(replaced)}")
        for message in out_of_reach(self.dual, int(args.generation_batch_size)):
            self.say(message)

    @property
    def _is_training(self) -> bool:
        return self.model is not None and bool(self.model.training)

    @property
    def group_size(self) -> int:
        """Rollouts per prompt of the present phase, training or evaluation."""
        return int((self.num_generations if self._is_training else self.num_generations_eval) or 1)

    # -- the seam --------------------------------------------------------------------------------------------------------

    def _generate(self, prompts: Any) -> Any:
        """TRL's generation; judging starts as soon as it returns, so that it runs beside the log-prob passes."""
        began = time.perf_counter()
        result = super()._generate(prompts)
        self.seconds["generation"] += time.perf_counter() - began
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra, images, tool_images = result
        self._check_mixed([bool(row) for row in images] if images is not None else [False] * len(prompt_ids))
        if mixed_batches.has_images(self._inputs, images):
            mixed_batches.check_sampled(self, completion_ids, tool_mask)
        if self.scorer is not None:
            self.scorer.start(self._inputs, completions, completion_ids, self)
        if images is not None:  # TRL's None for a row without images is unknown to processors
            images = [row or [] for row in images]
        return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra, images, tool_images

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's gathered scores (N, reward functions), NaN = no score; they are kept together with their failures."""
        self.measure_probes(prompts, completion_ids_list)
        began = time.perf_counter()
        self._images_once.close()  # a judge that fails saves a checkpoint, and the processor with it
        self._returned.clear()
        self._stops.clear()
        scores_NR: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.is_plain:
            self._stop_if_refused()
            check_reward_models(self.reward_funcs, self.reward_func_names, scores_NR, self.state.global_step)
            self._gathered = gather(scores_NR, self._returned, self.reward_func_names, len(prompts))
            self._warn_of_unknown_failures()
        self.seconds["judging"] += time.perf_counter() - began
        return scores_NR

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch with the advantages of `rl.step`; in training the multipliers take their step."""
        began = time.perf_counter()
        self._inputs = mixed_batches.with_image_lists(inputs)
        if not self.is_plain:
            self.reward_weights = self._columns.weights(
                self._task_weights, self.dual.weights()[1:]
            )  # λ_t, for TRL's log
        family = self.known_family()
        with ExitStack() as self._images_once:
            if family is not None:
                self._images_once.enter_context(prepared_once(self.processing_class, family.grid_field))
            output: dict[str, Any] = super()._generate_and_score_completions(self._inputs)
        if not self.is_plain:
            self._take_step(output, len(inputs))
        self.seconds["rollout"] += time.perf_counter() - began
        return output

    def _take_step(self, output: dict[str, Any], rows: int) -> None:
        """Put the step's advantages into TRL's batch of `rows` rollouts; in training, move the multipliers."""
        assert self._gathered is not None
        gathered, self._gathered = self._gathered, None
        self._stop_if_failed(gathered)
        scores_NK, failed_NK = gathered.scores_NK, gathered.failed_NK
        if self.coupling is None:
            scores_NK, failed_NK = self._columns.reduce(scores_NK, failed_NK, self._task_weights)
        step = fgrpo_step(
            scores_NK,
            failed_NK,
            self.dual,
            self._step_options(),
            lengths_N=self.accelerator.gather(output["completion_mask"].sum(dim=1)) if self.whiten == "token" else None,
            rollouts=gathered.batches,
        )
        first_row = self.accelerator.process_index * rows
        own_N = step.advantages_N[first_row : first_row + rows]
        output["advantages"] = (
            own_N if self.token_weights is None else weighted(self, self.token_weights, own_N, output)
        )
        self._log_step(step)
        if self._is_training:
            self._before_step = self.dual.state_dict()
            self.dual.load_state_dict(step.dual_state)
            self.last_step, self.last_alarms = step, self._alarms.of(step.metrics)
            self._show(self.last_alarms)

    def _show(self, alarms: Sequence[str]) -> None:
        for alarm in alarms if self.shows_alarms else ():
            self.say(alarm)

    def train(self, *args: Any, **more: Any) -> Any:
        """As TRL's; says at the end which multipliers never moved."""
        result = super().train(*args, **more)
        self._show(self._alarms.at_end())
        return result

    def _step_options(self) -> StepOptions:
        return StepOptions(
            group_size=self.group_size,
            coupling=self.coupling,
            masked=self.masked,
            baseline=self.baseline,
            whiten=self.whiten,
            names=self._columns.names if self.coupling is None else tuple(self.reward_func_names),
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

    def _check_mixed(self, has_image: Sequence[bool]) -> None:
        """Refuse a mix of rollouts with and without images (also of tools) before a pass in which processes would wait for one another."""
        if self._must_agree and self._anywhere(any(has_image)) and self._anywhere(not all(has_image)):
            mixed_batches.refuse(f"the generation batch of step {self.state.global_step + 1}")

    def _warn_of_unknown_failures(self) -> None:
        """Once: without a reward that says what failed, every None is "not applicable" and the limit has no effect."""
        if self._said_unknown or self.max_failed_share == 1 or not self._returned:
            return
        self._said_unknown = True
        if not any(isinstance(column, ScoreColumn) for column in self._returned.values()):
            self.say(
                f"max_failed_share={self.max_failed_share:g} has no effect: the reward functions return plain lists, in which None "
                "means not applicable. Return an rl.scored_batch.ScoreColumn to say which scores failed"
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
        self._finished = FinishedStep.of(self)  # for an evaluation whose judging fails
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

    def is_cut_off(self, ids: Sequence[int]) -> bool:
        """Whether a completion of these token ids ended without an end token, as TRL counts it."""
        ends: Sequence[int | None] = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        return len(ids) > 0 and ids[-1] not in ends

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
        """Seconds since the last call that went to generation, to waiting for judges, to probes and to the log-prob passes."""
        spent = dict(self.seconds)
        passes = spent.pop("rollout") - spent["generation"] - spent["judging"] - spent.get("probes", 0.0)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return {**spent, "logprobs": max(passes, 0.0)}


def resume_point(folder: str | Path) -> Path | None:
    """The newest whole checkpoint with its multipliers, None without checkpoints; damaged ones are named and skipped.

    Raises:
        WrongCheckpoint: there are checkpoints, and none is whole.
    """
    return stored.resume_point(folder, NEEDED)
