"""The SFT stage (Appendix A.2, Table 4): the base model learns the format of the traces with TRL's SFTTrainer.

Reads runs/<preset>/mcts/sft.jsonl and the base model; writes runs/<preset>/sft/{metrics.jsonl, checkpoints/, best/, final/}.
Loss on the completion only, frozen vision tower, cosine schedule, validation split by question. `final` is the state with the
lowest validation loss. A killed run resumes from its last complete checkpoint. Command: `python -m sft.train --preset mini`.
Ours: the choice of validation questions, and how often the validation loss is measured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig

from fgrpo import recorded, runs
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.addresses import without_keys
from fgrpo.policy import adapters, loading, model_files
from fgrpo.resume import recorded_changes
from fgrpo.schema import Config
from fgrpo.training import distributed, launch, metrics_file, tracking
from fgrpo.training.checkpoints import SFT_KEPT, STATE, AtomicCheckpoints
from fgrpo.training.finite import NotFinite
from fgrpo.training.metrics_callback import MetricsCallback
from fgrpo.training.stored import resume_point, settle_replaced
from sft import dataset
from sft.best import METRICS, best_is_lost, best_so_far, check_best, export_best, save_state
from sft.box_frame import in_policy_frame
from sft.preflight import Preflight
from sft.shared_prefix import SharedPrefix

COUNTERS = "counters.json"
NEEDED = (STATE, COUNTERS)  # of a checkpoint


class Trainer(AtomicCheckpoints, SharedPrefix):
    """TRL's SFTTrainer with shared rows and atomic checkpoints, which also hold its count of tokens."""

    def _write_extra(self, folder: Path) -> None:
        runs.write_json(folder / COUNTERS, {"train_tokens": self._total_train_tokens})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            counters = json.loads((Path(checkpoint) / COUNTERS).read_text(encoding="utf-8"))
            self._total_train_tokens = counters["train_tokens"]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    launch.run_stage("sft.train", __doc__, train, argv)


def train(cfg: Config, root: str | Path = "runs") -> Path:
    """Run or resume the stage and return its folder. Every process of the run calls it (see `fgrpo.training.launch`).

    Raises:
        UserError: the traces are missing, or none is usable.
    """
    traces = runs.require(runs.folder(cfg, "mcts", root) / "sft.jsonl", "mcts", check=distributed.rank() == 0)
    with (
        distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, "sft", [traces], root) as run,
    ):
        if distributed.on_main(lambda: run.is_done):
            distributed.print_once(f"{run.path} is already done")
            return run.path
        distributed.on_main(lambda: check_images(cfg, traces, root))
        return fit(cfg, run, lambda: build_trainer(cfg, run, traces))


def fit(cfg: Config, run: runs.Run, build: Callable[[], tuple[Trainer, LoggingCallback]]) -> Path:
    """Train or resume an open run, and finish it with the state of the lowest validation loss; returns its folder.

    Args:
        build: makes the trainer and its logging callback (`build_trainer`).
    """
    disable_progress_bar()  # of transformers; the stage has its own progress bar
    tracking.check_tracker(cfg.sft.report_to, "sft.report_to")
    trainer, logger = build()
    checkpoint = distributed.on_main(lambda: checkpoint_to_resume(run.path, trainer.args.max_steps))
    if checkpoint is not None:
        distributed.print_once(f"resuming from {checkpoint}")
    try:
        if checkpoint is None or step_of(checkpoint) < trainer.args.max_steps:
            with tracking.tracked(trainer, cfg.sft.report_to, f"{cfg.preset}-{run.stage}", run.path, without_keys(cfg)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:
            trainer.rotate_to(checkpoint)
    except NotFinite as error:
        logger.stopped(error)
        raise
    finally:
        logger.close()
    best = export_best(trainer, run.path)
    if trainer.accelerator.is_main_process:
        run.counts["skipped steps"] = metrics_file.skipped_steps(run.path)
        run.finish([METRICS, "final"], best=best)
    return run.path


def check_images(cfg: Config, traces: Path, root: str | Path) -> None:
    """UserError if an image of the traces is not what the data stage read."""
    images = [path for row in read_jsonl(traces) for path in row.get("images") or ()]
    recorded.check_images(runs.folder(cfg, "data", root), images)


def checkpoint_to_resume(folder: Path, steps: int) -> Path | None:
    """The last complete checkpoint, or None to train from the start. Called on the main process only.

    A run that was killed after its last step (`steps`) has nothing left to train if a best state exists. Without one, its last
    steps are repeated so that the final model can be written.

    Raises:
        UserError: the state with the lowest validation loss is lost or damaged; no checkpoint can give it again.
    """
    settle_replaced(folder / "best")
    settle_replaced(folder / "final")
    check_best(folder)
    has_best = not math.isinf(best_so_far(folder)[0])
    checkpoint = resume_point(folder / "checkpoints", NEEDED, before=None if has_best else steps)
    if checkpoint is not None and best_is_lost(folder, checkpoint):
        raise UserError(
            f"{folder / 'best'}, the state with the lowest validation loss, is missing or damaged, and no checkpoint can give it again. "
            f"Restore it from a copy, or move {folder} away and rerun to train anew"
        )
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


Columns = Callable[[Sequence[dataset.Row]], Mapping[str, Sequence[str]]]


def build_trainer(
    cfg: Config,
    run: runs.Run,
    traces: Path,
    kind: Callable[..., Trainer] = Trainer,
    columns: Columns | None = None,
) -> tuple[Trainer, LoggingCallback]:
    """The trainer, ready to train, and its logging callback.

    Args:
        run: the open run; its counts get the numbers of dropped and used rows.
        traces: path of sft.jsonl.
        kind: the trainer's class.
        columns: makes further columns of the data set from its rows.
    """
    sft = cfg.sft
    if loading.device() == "cpu":  # on shared cores a second thread is slower than one
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    family = model_files.backbone_of(cfg.models.base)
    pixels = model_files.pixel_bounds(cfg.models.base, cfg.policy.pixels)
    processor = loading.load_processor(cfg.models.base, pixels)
    loading.check_template(processor, cfg.models.base)
    rows = dataset.fitting(
        in_policy_frame(
            dataset.read_rows(traces, run.counts, sft.traces),
            cfg.policy,
            model_files.pixel_bounds(cfg.models.teacher),
            pixels,
            run.counts,
        ),
        lambda text: len(processor.tokenizer(text)["input_ids"]),
        sft.max_length,
        pixels,
        family,
        run.counts,
    )
    training_rows, validation_rows = dataset.split(rows, cfg.data.validation_share, cfg.seed)
    run.counts["traces"], run.counts["validation traces"] = len(training_rows), len(validation_rows)

    def with_columns(rows: Sequence[dataset.Row]) -> Dataset:
        return dataset.to_dataset(rows, columns(rows) if columns is not None else None)

    # before the model is loaded, because ZeRO-3 partitions it while loading
    args = sft_config(cfg, run.path / "checkpoints", len(training_rows), bool(validation_rows))
    args.eval_steps = validation_interval(first_length(cfg, run.path), len(training_rows))
    ordered = _order(cfg)
    if ordered is not None:
        taken = args.max_steps * sft.batch_size * sft.gradient_accumulation * distributed.world_size()
        training_rows = [training_rows[i] for i in ordered(training_rows, taken, cfg.seed)]
    dtype = loading.training_dtype(sft.precision, sft.deepspeed, adapters=sft.lora is not None)
    model, _ = loading.load_policy(cfg.models.base, dtype, sft.attention)
    if sft.freeze_vision:
        loading.freeze_vision(model, projector=sft.freeze_projector)
    logger, preflight = LoggingCallback(run.path), Preflight(training_rows)
    trainer = kind(
        model,
        args,
        train_dataset=with_columns(training_rows),
        eval_dataset=with_columns(validation_rows) if validation_rows else None,
        processing_class=processor,
        peft_config=adapters.lora_config(sft.lora, family),
        callbacks=[preflight, logger],
    )
    trainer.in_order = ordered is not None
    if sft.shared_prefix == "auto":
        trainer.share()
    trainer.remove_callback(PrinterCallback)
    trainer.nonfinite = sft.nonfinite
    logger.trainer = preflight.trainer = trainer
    return trainer, logger


def _order(cfg: Config) -> Callable[[Sequence[dataset.Row], int, int], list[int]] | None:
    """How the traces of a run follow one another; None: transformers shuffles them."""
    if cfg.sft.shared_prefix == "auto":
        return dataset.order
    return dataset.order_by_length if cfg.sft.group_by_length else None


def total_steps(cfg: Config, rows: int, world: int) -> int:
    """Optimizer steps of the run with `rows` training rows and `world` processes."""
    sft = cfg.sft
    if sft.max_steps > 0:
        return sft.max_steps
    return max(1, math.ceil(rows / (sft.batch_size * sft.gradient_accumulation * world) * sft.epochs))


def validation_interval(cfg: Config, rows: int, world: int | None = None) -> int:
    """Optimizer steps between two validations: `sft.evals` of them over the run's length."""
    return max(1, math.ceil(total_steps(cfg, rows, world or distributed.world_size()) / cfg.sft.evals))


def first_length(cfg: Config, folder: Path) -> Config:
    """`cfg` with the length that the run in `folder` began with.

    An extended run validates at the same steps as before, since they decide which state is the best.
    """
    first = {change["key"]: change["from"] for change in reversed(recorded_changes(folder))}
    lengths = {name: first[f"sft.{name}"] for name in ("max_steps", "epochs") if f"sft.{name}" in first}
    return cfg.model_copy(update={"sft": cfg.sft.model_copy(update=lengths)})


def sft_config(cfg: Config, folder: Path, rows: int, has_validation: bool, world: int | None = None) -> SFTConfig:
    """Our configuration as TRL's; tests/sft/test_sft.py pins the values.

    Args:
        folder: output folder of the checkpoints.
        rows: number of training rows.
        has_validation: whether there are validation rows.
        world: number of processes; by default that of the current run.
    """
    sft = cfg.sft
    steps = total_steps(cfg, rows, world or distributed.world_size())
    return SFTConfig(
        **distributed.trainer_arguments(sft.deepspeed, cfg.launch.timeout_s, cfg.launch.sft_image_workers),
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=sft.learning_rate,
        weight_decay=sft.weight_decay,
        warmup_steps=sft.warmup_ratio,  # transformers treats values below 1 as a share of the run
        lr_scheduler_type=sft.scheduler,
        optim="adamw_torch",
        per_device_train_batch_size=sft.batch_size,
        per_device_eval_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation,
        bf16=sft.precision == "bf16",
        gradient_checkpointing=sft.precision == "bf16",
        max_length=None,  # truncation could split image tokens; overlong rows were dropped
        packing=False,
        completion_only_loss=True,
        remove_unused_columns=False,
        dataloader_pin_memory=loading.device() != "cpu",
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps" if has_validation else "no",
        eval_steps=validation_interval(cfg, rows, world),
        save_strategy="steps",
        save_steps=sft.save_steps,
        save_total_limit=SFT_KEPT,
        logging_steps=sft.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        seed=cfg.seed,
        disable_tqdm=True,
        report_to="none",  # `fgrpo.training.tracking` adds the tracker
    )


class LoggingCallback(MetricsCallback):
    """Writes metrics.jsonl, shows a progress line, and saves the best state in best/ (best.json: step and eval_loss)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.trainer: Trainer | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write a skipped step at once: the next log line may be many steps, and a checkpoint, away."""
        if self.is_open and self.trainer is not None and (skipped := self.trainer.take_skipped()):
            self.add({"step": state.global_step, metrics_file.NOT_FINITE: {str(n): c for n, c in skipped.items()}})
        self.show(state.global_step)

    def log(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        """One line per log entry: its numbers, null where not finite."""
        numbers = {k: v for k, v in logs.items() if isinstance(v, (int, float))}
        self.add({"step": state.global_step, **numbers})
        losses = (f"{key} {numbers[key]:.3f}" for key in ("loss", "eval_loss") if key in numbers)
        self.show(state.global_step, ", ".join(losses))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_loss")
        if self.trainer is None or loss is None:
            return
        if distributed.on_main(lambda: loss < best_so_far(self.folder)[0]):
            save_state(self.trainer, self.folder / "best", {"step": state.global_step, "eval_loss": float(loss)})


if __name__ == "__main__":
    main()
