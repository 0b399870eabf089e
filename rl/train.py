"""The RL stage: GRPO-T, FGRPO and the other rows of Tables 2 and 3, from one SFT checkpoint (Section 3.3, Tables 5 and 6).

Reads runs/<preset>/data/rl.jsonl and runs/<preset>/<rl.start>/final; writes runs/<preset>/rl-<method>/{metrics.jsonl, rollouts/,
checkpoints/, final/}. A killed run resumes from its last complete checkpoint: `python -m rl.train --preset mini --method fgrpo`.
Differs from the paper only where docs/deviations.md says so. Configuration alone selects the row of the tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from fgrpo import prompts, recorded, runs
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.addresses import without_keys
from fgrpo.policy import adapters, loading, model_files
from fgrpo.schema import Config
from fgrpo.training import checkpoints, distributed, launch, metrics_file, tracking
from fgrpo.training.finite import NotFinite
from fgrpo.training.stored import settle_replaced
from judges import build
from rewards.base import RewardContext
from rl import arguments, auxiliary_loss, data
from rl.configured import check_configured, check_groups
from rl.dual import Constraint, DualAscent
from rl.failures import FailedJudgements
from rl.in_process_trainer import InProcessTrainer
from rl.logging_callback import LoggingCallback
from rl.preflight import Preflight
from rl.probes.checks import check_questions
from rl.scoring import RolloutScorer
from rl.token_weights import Dependence
from rl.trainer import FaithfulGRPOTrainer, resume_point


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    launch.run_stage("rl.train", __doc__, train, argv)


def train(cfg: Config, root: str | Path = "runs") -> Path:
    """Run or resume the stage; returns its folder. Every process of the run calls it (see `fgrpo.training.launch`).

    Raises:
        UserError: an input is missing, the disk is full, too many judgements failed (the last good checkpoint stays).
    """
    is_main = distributed.rank() == 0
    questions = runs.require(runs.folder(cfg, "data", root) / "rl.jsonl", "data", check=is_main)
    policy = runs.require(runs.folder(cfg, cfg.rl.start, root) / "final", cfg.rl.start, check=is_main)
    stage, inputs = f"rl-{cfg.method}", [questions, policy]
    if not runs.is_done(cfg, stage, root, inputs):
        check_configuration(cfg)  # before a folder of another configuration is moved aside
    with (
        distributed.session(cfg.rl.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, stage, inputs, root) as run,
    ):
        if distributed.on_main(lambda: run.is_done):
            distributed.print_once(f"{run.path} is already done")
            return run.path
        disable_progress_bar()  # transformers' own; the stage has one progress line
        images = (path for row in read_jsonl(questions) for path in row.get("images") or ())
        distributed.on_main(lambda: recorded.check_images(questions.parent, images))
        trainer, log = build_trainer(cfg, run, questions, policy)
        distributed.on_main(lambda: settle_replaced(run.path / "final"))
        checkpoint = distributed.on_main(lambda: resume_point(run.path / "checkpoints"))
        if checkpoint is not None:
            distributed.print_once(f"resuming from {checkpoint}")
        try:
            with tracking.tracked(trainer, cfg.rl.report_to, f"{cfg.preset}-{cfg.method}", run.path, without_keys(cfg)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except FailedJudgements as error:
            raise UserError(str(error)) from error
        except NotFinite as error:
            log.stopped(error)
            raise
        finally:
            log.close()
        checkpoints.save_final(trainer, run.path / "final")
        if trainer.accelerator.is_main_process:
            run.counts["skipped steps"] = metrics_file.skipped_steps(run.path)
            run.finish(["metrics.jsonl", "rollouts", "final"], final_lambda=trainer.dual.lam)
        return run.path


def check_configuration(cfg: Config) -> None:
    """Refuse a configuration whose run cannot start, as far as that shows without a model or a run folder.

    Raises:
        UserError: an unknown reward, constraint or auxiliary loss, vLLM or a tracker that is not installed.
    """
    make_dual(cfg)
    trainer_of(cfg)
    tracking.check_tracker(cfg.rl.report_to, "rl.report_to")


def build_trainer(
    cfg: Config, run: runs.Run, questions: Path, policy: Path
) -> tuple[FaithfulGRPOTrainer, LoggingCallback]:
    """The trainer of one method, ready to train, and its logging callback."""
    rl = cfg.rl
    # cheap checks before slow loading
    dual, pixels = make_dual(cfg), model_files.carried_bounds(policy, cfg.policy.pixels)
    scorer = make_scorer(cfg, pixels, run.path)
    distributed.on_main(scorer.check_judges)  # before the slow loading, and before the first token
    arguments.check_batches(rl, distributed.world_size())
    check_groups(scorer.needs_groups, rl.rollout_batch, distributed.world_size())
    kind = trainer_of(cfg)
    usable = data.read_samples(questions, run.counts)
    if loading.device() == "cpu":  # a second thread costs more than it brings where two methods share the cores
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    processor = loading.load_processor(policy)
    template = prompts.read_for(cfg.policy, cfg.prompts.think)
    family = model_files.backbone_of(policy)
    samples = data.fitting(usable, template, processor, rl.max_prompt_length, pixels, family, run.counts)
    run.counts["questions"] = len(samples)
    check_questions(scorer.rewards, samples, scorer.context, run.counts)
    steps = arguments.total_steps(rl, len(samples))
    prompt_count = steps // arguments.updates_per_generation(rl) * rl.rollout_batch
    dataset = data.to_dataset(samples, template).select(data.order(len(samples), prompt_count, cfg.seed))
    forbidden = loading.forbidden_token_ids(processor.tokenizer, loading.text_vocabulary(policy), family)
    loading.check_format(processor.tokenizer, forbidden, cfg.policy.box_tag)
    loading.check_template(processor, policy)
    args = arguments.grpo_config(
        cfg, run.path / "checkpoints", steps, forbidden
    )  # first: ZeRO-3 shards the model as it loads
    dtype = loading.training_dtype(rl.precision, rl.deepspeed, adapters=rl.lora is not None)
    model, _ = loading.load_policy(policy, dtype, rl.attention)
    if rl.freeze_vision:
        loading.freeze_vision(model, projector=rl.freeze_projector)
    preflight = Preflight(questions, pixels, forbidden, cfg)
    log = LoggingCallback(run.path, pixels)
    trainer = kind(
        model,
        scorer.reward_funcs(),
        args,
        dataset,
        processing_class=processor,
        peft_config=adapters.lora_config(rl.lora, family),
        callbacks=[preflight, log],
        dual=dual,
        coupling=rl.combine if rl.combine in ("additive", "multiplicative") else None,
        masked=rl.masked,
        baseline=rl.baseline,
        whiten=rl.whiten,
        scorer=scorer,
        max_failed_share=rl.max_failed_share,
        rows="shared" if rl.shared_prefix == "auto" else "by_length",
        auxiliary=[auxiliary_loss.load(name, loss.weight, loss.options) for name, loss in rl.auxiliary.items()],
        token_weights=None if rl.token_weights is None else Dependence(**rl.token_weights.model_dump()),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.nonfinite = rl.nonfinite
    trainer.writes_card = False
    trainer.shows_alarms = False  # the logging callback does
    trainer.processes_make_the_batch = False  # the configuration's batches are the run's, not one process'
    preflight.trainer = log.trainer = trainer
    return trainer, log


def trainer_of(cfg: Config) -> Callable[..., FaithfulGRPOTrainer]:
    """The class of trainer for the configured rollout engine.

    Raises:
        UserError: vLLM is configured and not installed.
    """
    if cfg.rl.rollout_engine != "transformers":
        from rl import vllm_rollouts

        vllm_rollouts.require_vllm()
        return partial(vllm_rollouts.VLLMTrainer, rollouts=cfg.rl.vllm)
    return InProcessTrainer if cfg.rl.deepspeed is None else FaithfulGRPOTrainer


def make_dual(cfg: Config) -> DualAscent:
    """The multipliers of a method: one constraint for each key of rl.constraints; a coupled reward has none.

    Raises:
        UserError: a constraint or monitor that is not a reward (names the nearest), or values that make no constraint.
    """
    rl = cfg.rl
    check_configured(cfg)
    try:
        constraints = [make_constraint(cfg, name) for name in rl.constraints] if rl.combine == "decoupled" else []
        return DualAscent(constraints, rl.dual.kind, kp=rl.dual.kp, kd=rl.dual.kd)
    except ValueError as error:
        raise UserError(f"rl.constraints, rl.dual: {error}") from error


def make_constraint(cfg: Config, name: str) -> Constraint:
    """The constraint rl.constraints.<name>; what it leaves out it takes from rl.dual.

    Raises:
        ValueError: its values make no constraint.
    """
    own, shared = cfg.rl.constraints[name], cfg.rl.dual
    return Constraint(
        reward=name,
        tau=own.tau,
        lam_init=shared.lam_init if own.lam_init is None else own.lam_init,
        lr=shared.lr if own.lr is None else own.lr,
        lam_max=shared.lam_max if own.lam_max is None else own.lam_max,
        min_applicable=shared.min_applicable if own.min_applicable is None else own.min_applicable,
        indicator=own.indicator,
    )


def make_scorer(cfg: Config, pixels: PixelBounds, folder: Path | None = None) -> RolloutScorer:
    """The rewards of the method's task and constraints, and those that are only logged.

    Args:
        pixels: the processor's bounds.
        folder: the run's, where the judges' spending is kept.
    """
    context = RewardContext(
        build(cfg.judges.training, cfg.data.root, folder),
        mask="correct",
        boxes_from=cfg.data.boxes_from,
        box_normaliser=cfg.rl.box_normaliser,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
        patch_factor=pixels.factor,
        box_tag=cfg.policy.box_tag,
        box_frame=cfg.policy.box_frame,
        unscorable=cfg.rl.unscorable,
        grounding_mean=cfg.rl.grounding_mean,
        token_limit=cfg.rl.max_response_length,
        probing=cfg.rl.probes,
    )
    return RolloutScorer(list(cfg.rl.constraints), context, cfg.rl.monitor, cfg.rl.task_reward)


if __name__ == "__main__":
    main()
