"""FaithfulGRPOTrainer: TRL's GRPOTrainer with adaptive constraints (Section 3.3, Eqs. 3 to 6).

TRL's `multi_objective_aggregation="normalize_then_sum"` with None for "not applicable" is Eq. 6 already if its
`reward_weights` are [1, λ…]. So the method itself is one override, `_calculate_rewards` around `super()`: it sets the weights
to λ_t and then lets the dual step read the gathered scores (λ_t weighs the batch, the step gives λ_{t+1}). Every option that TRL's
formula cannot express (masked zero, batch baseline, token whitening, the coupled rewards of Table 2) replaces the advantages
that `_generate_and_score_completions` returns by those of `rl.advantage.combine`. No TRL method is copied.

Besides: the multipliers are part of every checkpoint (`duals.json`), checkpoints are written aside and renamed, scoring may
start before the log-prob passes, and a step in which too many judgements fail stops the run after saving a checkpoint.
A drop-in: `FaithfulGRPOTrainer(model, reward_funcs=[task, c1], constraints=[Constraint("c1", tau=.95)], args=GRPOConfig(…))`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fgrpo.policy import backbone
from fgrpo.training import checkpoints
from rl.advantage import Baseline, Coupling, Masked, Whiten, combine, couple, rounded, shares, varying_groups
from rl.checks import check_config, check_constraints, check_dataset
from rl.dual import Constraint, DualAscent, DualStep
from rl.reward_validation import NoScore, guarded, rollout_id

DUALS = "duals.json"


class Scorer(Protocol):
    """Scores rollouts ahead of the reward functions, which then wait for what was started (see `rl.scoring`)."""

    def start(
        self,
        inputs: Sequence[dict[str, Any]],
        completions: Sequence[Any],
        ids: Sequence[Sequence[int]],
        trainer: GRPOTrainer,
    ) -> None: ...

    def failed(self) -> Sequence[Sequence[bool]]:
        """Which scores of the local batch are failures: one row a rollout, one column a reward function."""
        ...

    def why(self, name: str) -> str:
        """The commonest reason of this reward's failures in the local batch, "" if there are none."""
        ...

    def sums(self) -> Mapping[str, tuple[float, float | None]]:
        """What is logged besides, by name: (sum, count) over the local batch, count None for a total; the same names on every
        process."""
        ...


class FailedJudgements(RuntimeError):
    """More judgements failed in one step than the run allows. A checkpoint has been saved where one was possible."""


class FaithfulGRPOTrainer(checkpoints.AtomicCheckpoints, GRPOTrainer):
    """See the module's docstring. Arguments beyond TRL's, all by keyword:

    Args:
        constraints: one for each reward function but the first, which is the task reward.
        dual: the multipliers; made from `constraints` (adaptive) if not given.
        coupling: None decouples (Eq. 6); "additive" or "multiplicative" make one reward of all columns first (Table 2),
            and take no constraints.
        masked, baseline, whiten: options of `rl.advantage.combine`.
        scorer: starts judging as soon as the rollouts exist.
        max_failed_share: share of one reward's judgements of a generation batch that may fail, and one of them always unless
            it is 0; past it the run stops.

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
        **more: Any,
    ) -> None:
        if args is None:
            raise ValueError(
                "pass args=GRPOConfig(multi_objective_aggregation='normalize_then_sum', …): its default is not FGRPO"
            )
        check_config(args)
        check_dataset(train_dataset)
        funcs = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs] * (reward_funcs is not None)
        self.dual = dual if dual is not None else DualAscent(constraints)
        self.coupling, self.masked, self.baseline, self.whiten = coupling, masked, baseline, whiten
        self.scorer, self.max_failed_share = scorer, max_failed_share
        self.seconds = {"generation": 0.0, "judging": 0.0, "rollout": 0.0}  # since the last `take_seconds`
        self.advantages: list[float] = []  # of this process' last generation batch, in its order
        self._inputs: Sequence[dict[str, Any]] = ()
        self._scores_NK = self._weights_K = torch.empty(0)
        self._failed_NK: Tensor | None = None
        super().__init__(model, [guarded(func) for func in funcs], args, train_dataset, *others, **more)
        check_constraints(self.reward_func_names, self.dual, constraints, coupling)

    @property
    def _is_trl_formula(self) -> bool:
        plain = (self.masked, self.baseline, self.whiten) == ("exclude", "group", "sequence")
        return self.coupling is None and plain

    @property
    def _is_training(self) -> bool:
        return self.model is not None and bool(self.model.training)

    @property
    def _group_size(self) -> int:
        return int((self.num_generations if self._is_training else self.num_generations_eval) or 1)

    # -- the seam --------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Gathered scores (N, K), NaN = no score. Sets `reward_weights` to λ_t, then takes the dual step."""
        began = time.perf_counter()
        raw_NK: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._check_models(raw_NK)
        failed_NK = self._failures(raw_NK)
        scores_NK = rounded(raw_NK)
        weights = self.dual.weights() if self.coupling is None else [1.0] * len(self.reward_func_names)
        self.reward_weights = torch.tensor(weights, dtype=torch.float32)
        self._scores_NK, self._weights_K = scores_NK, self.reward_weights.to(scores_NK.device)
        self._failed_NK = failed_NK
        if self.coupling is not None:
            self._scores_NK, self._failed_NK = couple(scores_NK, self.coupling, failed_NK), None
            self._weights_K = torch.ones(1, device=scores_NK.device)
        if self._is_training:
            columns = range(1, scores_NK.shape[1]) if self.dual.constraints else []
            steps = self.dual.step(scores_NK[:, list(columns)])
            self._observe(scores_NK, failed_NK, steps)
            self._log_sums()
        self.seconds["judging"] += time.perf_counter() - began
        return scores_NK

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's batch; its advantages are replaced where TRL's formula is not the configured one."""
        began = time.perf_counter()
        self._inputs = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self._is_trl_formula:
            here = self.accelerator.process_index * len(inputs)
            output["advantages"] = self._own_advantages(output)[here : here + len(inputs)]
        self.advantages = output["advantages"].tolist()
        self.seconds["rollout"] += time.perf_counter() - began
        return output

    def _own_advantages(self, output: Mapping[str, Any]) -> Tensor:
        """Advantages (N,) of all processes by the configured formula; they replace TRL's in what it shows of the batch too."""
        adv_N = combine(
            self._scores_NK,
            self._weights_K,
            self._group_size,
            masked=self.masked,
            baseline=self.baseline,
            whiten=self.whiten,
            lengths_N=self.accelerator.gather(output["completion_mask"].sum(dim=1)),
            failed_NK=self._failed_NK,
        )
        shown: Any = self._logs["advantages"]
        for _ in range(min(len(adv_N), len(shown))):
            shown.pop()
        shown.extend(adv_N.tolist())
        if self.coupling is not None:  # TRL has logged the columns' sum
            figures, reward_N = self._metrics["train" if self._is_training else "eval"], self._scores_NK[:, 0]
            reward_N = reward_N[~torch.isnan(reward_N)]
            figures["reward"][-1], figures["reward_std"][-1] = float(reward_N.mean()), float(reward_N.std())
        return adv_N

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

    # -- the preflight's probe (rl.preflight) ------------------------------------------------------------------------------

    @property
    def plain_model(self) -> Any:
        """The policy without wrappers of accelerate and peft."""
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forbidden_ids(self) -> Sequence[int]:
        """Token ids that the rollout engine has been told never to sample."""
        if self.use_vllm:
            bias: dict[Any, float] = (getattr(self.args, "generation_kwargs", None) or {}).get("logit_bias") or {}
            return [int(token) for token, value in bias.items() if value <= -100]
        return list(getattr(self.generation_config, "suppress_tokens", None) or ())

    def probe(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Tensor | None]:
        """One group of rollouts for each of `rows` through TRL's own path, of which nothing stays behind.

        No reward is asked, no multiplier moves, nothing is logged, and torch's random state is as before. Every process calls
        it with as many rows.

        Returns:
            TRL's batch, and the engine's log-probabilities (B, T), NaN where it has none; None if it tells none.
        """
        group = int(self.num_generations_eval or self.num_generations or 1)
        model: Any = self.model
        inputs = [dict(row) for row in rows for _ in range(group)]
        shape = (len(inputs) * self.accelerator.num_processes, len(self.reward_func_names))
        scorer, training = self.scorer, model.training
        cuda = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        self.scorer = None
        self._calculate_rewards = lambda *_: torch.zeros(shape, device=self.accelerator.device)  # type: ignore[method-assign]
        model.eval()
        try:
            with torch.random.fork_rng(cuda):
                batch = GRPOTrainer._generate_and_score_completions(self, inputs)
        finally:
            del self._calculate_rewards
            self.scorer = scorer
            model.train(training)
            self._metrics["eval"].clear()
            shown: Any = self._logs
            for column in (shown["prompt"], shown["completion"], shown["advantages"], *shown["rewards"].values()):
                column.clear()
            self.take_seconds()
        return batch, self._engine_logprobs(batch)

    def _engine_logprobs(self, batch: Mapping[str, Any]) -> Tensor | None:
        return batch.get("sampling_per_token_logps")

    def logprobs(self, batch: Mapping[str, Any]) -> Tensor:
        """The trainer's own log-probabilities (B, T) of a batch of `probe`."""
        fields = ("pixel_values", "image_grid_thw", "num_images", "token_type_ids", "mm_token_type_ids")
        with torch.no_grad():
            found: Any = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                **{key: batch[key] for key in fields if key in batch},
            )
        logps_BT: Tensor = found[0]
        return logps_BT

    # -- what a step showed ------------------------------------------------------------------------------------------------

    def _check_sampled(self, completion_ids: Sequence[Sequence[int]]) -> None:
        """A sampled picture token would end the next forward pass with "Image features and image tokens do not match"."""
        config: Any = self.plain_model.config
        pictures = backbone.assumed(config.model_type).placeholder_ids(config)
        for row, ids in enumerate(completion_ids):
            if not pictures.isdisjoint(ids):
                raise ValueError(
                    f"rollout {rollout_id(self.state.global_step, self.accelerator.process_index, row)} contains a picture token; "
                    "forbid them to the rollout engine (fgrpo.policy.loading.forbidden_token_ids)"
                )

    def _check_models(self, scores_NK: Tensor) -> None:
        """Reward models answer always, so a NaN of theirs is one too; reward functions are `guarded`."""
        for column, func in enumerate(self.reward_funcs):
            bad = [row for row, value in enumerate(scores_NK[:, column].tolist()) if not math.isfinite(value)]
            if bad and isinstance(func, torch.nn.Module):
                raise NoScore(
                    f"the reward model {self.reward_func_names[column]!r} gives {float(scores_NK[bad[0], column])} for rollout "
                    f"{bad[0]} of step {self.state.global_step} (counted over all processes)"
                )

    def _failures(self, scores_NK: Tensor) -> Tensor:
        """Gathered failures (N, K), counted; raises `FailedJudgements` where a reward's are past the allowed share of its own."""
        if self.scorer is None:
            return torch.zeros_like(scores_NK, dtype=torch.bool)
        local = torch.tensor(self.scorer.failed(), dtype=torch.bool, device=scores_NK.device)
        failed_NK: Tensor = self.accelerator.gather(local)
        asked_K, failures_K = (failed_NK | ~torch.isnan(scores_NK)).sum(dim=0), failed_NK.sum(dim=0)
        allowed_K = (self.max_failed_share * asked_K).clamp(min=1.0 if self.max_failed_share else 0.0)
        worst = int((failures_K - allowed_K).argmax())
        asked, failures = int(asked_K[worst]), int(failures_K[worst])
        if failures > allowed_K[worst]:
            self._save_where_possible()
            why = next(filter(None, gather_object([self.scorer.why(self.reward_func_names[worst])])), "")
            raise FailedJudgements(
                f"step {self.state.global_step + 1}: {failures} of {asked} judgements of {self.reward_func_names[worst]!r} failed "
                f"(allowed: {self.max_failed_share:.1%}){f': {why}' if why else ''}; nothing was trained on them. Mend the judge and run "
                "the same command again"
            )
        return failed_NK

    def _save_where_possible(self) -> None:
        """A checkpoint of the last finished step, unless there is one or nothing has been trained yet."""
        present = Path(self._get_output_dir(None)) / f"{checkpoints.PREFIX}-{self.state.global_step}"
        if self.state.global_step > 0 and not present.exists():
            self._save_checkpoint(self.model, trial=None)

    def _observe(self, scores_NK: Tensor, failed_NK: Tensor, steps: Sequence[DualStep]) -> None:
        """Put the step's constraint figures beside TRL's metrics (`lambda/<name>` is the λ_t that weighed this batch)."""
        names = self.reward_func_names[1:]
        by_name = {step.name: step for step in steps}
        group = self._group_size
        share_K = None
        if self.coupling is None:
            how: Any = {"masked": self.masked, "baseline": self.baseline, "failed_NK": failed_NK}
            share_K = shares(scores_NK, self._weights_K, group, **how)
            self._metrics["train"]["task/share"].append(float(share_K[0]))
        for i, name in enumerate(names, start=1):
            column_N = scores_NK[:, i]
            known = ~torch.isnan(column_N)
            mixed, groups = varying_groups(column_N, group)
            figures = {
                f"constraint/{name}/mean": float(column_N[known].double().mean()) if known.any() else None,
                f"constraint/{name}/n": float(known.sum()),
                f"constraint/{name}/mixed_share": mixed / groups,
                f"constraint/{name}/failed": float(failed_NK[:, i].sum()),
            }
            if share_K is not None:
                figures[f"constraint/{name}/share"] = float(share_K[i])
            if (step := by_name.get(name)) is not None:
                figures[f"lambda/{name}"] = step.lam_before
                figures[f"constraint/{name}/violation"] = step.violation
                figures[f"constraint/{name}/saturated"] = float(step.saturated)
                figures[f"constraint/{name}/at_bound"] = float(step.at_bound)
                figures[f"constraint/{name}/steps_to_bound"] = (
                    None if step.bound_steps is None else float(step.bound_steps)
                )
            for key, value in figures.items():
                if value is not None:
                    self._metrics["train"][key].append(value)

    def _log_sums(self) -> None:
        """Put the scorer's own figures beside them, over all processes; a mean over nothing is no figure."""
        sums = dict(self.scorer.sums()) if self.scorer is not None else {}
        if not sums:
            return
        pairs = [(value, 0.0 if count is None else count) for value, count in sums.values()]
        everywhere: Any = self.accelerator.reduce(
            torch.tensor(pairs, dtype=torch.float64, device=self.accelerator.device), "sum"
        )
        for (name, (_, count)), (value, n) in zip(sums.items(), everywhere.tolist(), strict=True):
            if count is None or n:
                self._metrics["train"][name].append(value if count is None else value / n)

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent generating, waiting for judges and in the log-prob passes since the last call."""
        spent = dict(self.seconds)
        rest = spent.pop("rollout") - spent["generation"] - spent["judging"]
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return {**spent, "logprobs": max(rest, 0.0)}

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def _write_extra(self, folder: Path) -> None:
        text = json.dumps(self.dual.state_dict(), indent=1, allow_nan=False)
        (folder / DUALS).write_text(text + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / DUALS
        if not path.exists():
            raise checkpoints.WrongCheckpoint(
                f"{checkpoint} has no {DUALS}: it was not written by this trainer, and its multipliers are lost"
            )
        try:
            self.dual.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise checkpoints.WrongCheckpoint(
                f"{path}: {error}; delete that checkpoint, or give this run a folder of its own"
            ) from error


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint with its multipliers; half-written ones are passed over."""
    return checkpoints.last_checkpoint(folder, (DUALS, checkpoints.STATE))
