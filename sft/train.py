"""The SFT stage (Appendix A.2, Table 4): the base model learns the traces' form through TRL's SFTTrainer.

Reads runs/<preset>/mcts/sft.jsonl and the base model; writes runs/<preset>/sft/{metrics.jsonl, checkpoints/, best/, final/}.
Loss on the completion only, vision tower frozen, cosine schedule, validation by question; `final` is the state with the
lowest validation loss. A killed run goes on from its last complete checkpoint: `python -m sft.train --preset mini`.
Ours: how the validation questions are chosen, and how often validation loss is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from fgrpo import cli, config, runs
from fgrpo.files import read_jsonl
from fgrpo.policy import adapters, loading, model_files
from fgrpo.schema import Config
from fgrpo.training import distributed, launch, metrics_file
from fgrpo.training.checkpoints import SFT_KEPT, AtomicCheckpoints, last_checkpoint, save_final
from sft import dataset

METRICS = metrics_file.NAME


class Trainer(AtomicCheckpoints, SFTTrainer):
    """TRL's SFTTrainer with whole checkpoints."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        if not launch.launch_if_needed("sft.train", cfg, sys.argv[1:] if argv is None else argv):
            train(cfg, args.runs)

    cli.run(body, cli.parser(__doc__ or ""), argv)


def train(cfg: Config, root: str | Path = "runs") -> Path:
    """Run the stage, or go on with it; returns its folder. Every process of the run calls it (see `fgrpo.training.launch`)."""
    traces = runs.require(runs.folder(cfg, "mcts", root) / "sft.jsonl", "mcts")
    with (
        distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, "sft", [traces], root) as run,
    ):
        if distributed.on_main(lambda: run.is_done):
            distributed.print_once(f"{run.path} is done already")
            return run.path
        disable_progress_bar()  # transformers' own: one line is enough
        trainer, logbook = build_trainer(cfg, run, traces)
        checkpoint = distributed.on_main(lambda: where_to_go_on(run.path, trainer.args.max_steps))
        if checkpoint is not None:
            distributed.print_once(f"going on from {checkpoint}")
        try:
            if checkpoint is None or step_of(checkpoint) < trainer.args.max_steps:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            logbook.close()
        best = keep_best(trainer, run.path)
        if trainer.accelerator.is_main_process:
            run.finish([METRICS, "checkpoints", "final"], best=best)
        return run.path


def where_to_go_on(folder: Path, steps: int) -> Path | None:
    """The last complete checkpoint, unless the best state before it is lost; then none is left. The main process decides.

    A run that was killed after its last step, `steps`, has nothing left to do if a best state is kept; without one its last
    steps are done again, so that the model is there to be written.
    """
    known = not math.isinf(best_so_far(folder)[0])
    checkpoint = last_checkpoint(folder / "checkpoints", before=None if known else steps)
    if checkpoint is not None and lost_best(folder, checkpoint):
        print(f"{folder} has lost the state with the lowest validation loss; training from the start")
        shutil.rmtree(folder / "checkpoints")
        return None
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def build_trainer(cfg: Config, run: runs.Run, traces: Path) -> tuple[Trainer, Logbook]:
    """The trainer, ready to train, and its logbook."""
    sft = cfg.sft
    if loading.device() == "cpu":  # on shared cores a second thread costs more than it brings
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model_files.check_policy(cfg.models.base)
    processor = loading.load_processor(cfg.models.base)
    rows = dataset.fitting(
        dataset.read_rows(traces, run.counts, sft.traces),
        lambda text: len(processor.tokenizer(text)["input_ids"]),
        sft.max_length,
        model_files.pixel_bounds(cfg.models.base),
        run.counts,
    )
    learn, held = dataset.split(rows, cfg.data.validation_share, cfg.seed)
    run.counts["traces"], run.counts["validation traces"] = len(learn), len(held)
    args = sft_config(
        cfg, run.path / "checkpoints", len(learn), bool(held)
    )  # before the model: ZeRO-3 cuts it as it loads
    dtype = loading.training_dtype(sft.precision, sft.deepspeed, adapters=sft.lora is not None)
    model, _ = loading.load_policy(cfg.models.base, dtype, sft.attention)
    if sft.freeze_vision:
        loading.freeze_vision(model, projector=sft.freeze_projector)
    logbook = Logbook(run.path)
    trainer = Trainer(
        model,
        args,
        train_dataset=dataset.to_dataset(learn),
        eval_dataset=dataset.to_dataset(held) if held else None,
        processing_class=processor,
        peft_config=adapters.lora_config(sft.lora, model_files.backbone_of(cfg.models.base)),
        callbacks=[logbook],
    )
    trainer.remove_callback(PrinterCallback)
    logbook.trainer = trainer
    return trainer, logbook


def total_steps(cfg: Config, rows: int, world: int) -> int:
    """Optimiser steps of the run."""
    sft = cfg.sft
    if sft.max_steps > 0:
        return sft.max_steps
    return max(1, math.ceil(rows / (sft.batch_size * sft.gradient_accumulation * world) * sft.epochs))


def sft_config(cfg: Config, folder: Path, rows: int, validates: bool, world: int | None = None) -> SFTConfig:
    """The one place where our configuration becomes TRL's; tests/sft/test_sft.py pins it."""
    sft = cfg.sft
    steps = total_steps(cfg, rows, world or distributed.world_size())
    return SFTConfig(
        **distributed.trainer_arguments(sft.deepspeed, cfg.launch.timeout_s),
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=sft.learning_rate,
        weight_decay=sft.weight_decay,
        warmup_steps=sft.warmup_ratio,  # below 1, transformers reads it as a share of the run
        lr_scheduler_type=sft.scheduler,
        optim="adamw_torch",
        per_device_train_batch_size=sft.batch_size,
        per_device_eval_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation,
        bf16=sft.precision == "bf16",
        gradient_checkpointing=sft.precision == "bf16",
        max_length=None,  # a cut would fall into image tokens; rows that do not fit were left out
        packing=False,
        completion_only_loss=True,
        remove_unused_columns=False,
        dataloader_pin_memory=loading.device() != "cpu",
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps" if validates else "no",
        eval_steps=max(1, math.ceil(steps / sft.evals)),
        save_strategy="steps",
        save_steps=sft.save_steps,
        save_total_limit=SFT_KEPT,
        logging_steps=sft.logging_steps,
        logging_first_step=True,
        seed=cfg.seed,
        disable_tqdm=True,
        report_to="none",
    )


class Logbook(TrainerCallback):
    """metrics.jsonl, one progress line, and the best state so far in best/ (with best.json: step and eval_loss)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: Trainer | None = None
        self._bar: tqdm[Any] | None = None
        self._out: metrics_file.MetricsFile | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._out = metrics_file.MetricsFile(self.folder, state.global_step, state.log_history)
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="sft", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._out is None or logs is None or "train_runtime" in logs:
            return
        numbers = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        self._out.add({"step": state.global_step, **numbers})
        if self._bar is not None:
            shown = {k: f"{numbers[k]:.3f}" for k in ("loss", "eval_loss") if k in numbers}
            self._bar.set_postfix(shown, refresh=False)

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

    def close(self) -> None:
        """Close the file and the progress line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._out is not None:
            self._out.close()
            self._out = None


def best_so_far(folder: Path) -> tuple[float, dict[str, Any]]:
    """(lowest validation loss, what best.json says); infinity without one."""
    for name in ("best", "final"):  # final, if the process was killed after it was made
        if not any((folder / name).glob("*.safetensors")):
            continue
        try:
            known = json.loads((folder / name / "best.json").read_text(encoding="utf-8"))
            return float(known["eval_loss"]), dict(known)
        except (OSError, ValueError, KeyError, TypeError):  # not there
            continue
    return math.inf, {}


def lost_best(folder: Path, checkpoint: Path) -> bool:
    """Whether a validation took place up to `checkpoint`, and the state that it left is gone (a half-deleted folder)."""
    path, step = folder / METRICS, int(checkpoint.name.rsplit("-", 1)[1])
    lines = list(read_jsonl(path)) if path.exists() else []
    validated = not lines or any("eval_loss" in line and line["step"] <= step for line in lines)
    return validated and math.isinf(best_so_far(folder)[0]) and not any((folder / "final").glob("*.safetensors"))


def save_state(trainer: Trainer, folder: Path, facts: dict[str, Any]) -> None:
    """Model, processor and best.json, written aside and renamed."""
    save_final(trainer, folder, lambda aside: runs.write_json(aside / "best.json", facts))


def keep_best(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Make `final` of the state with the lowest validation loss, or of the last one where nothing validates."""
    loss, facts = distributed.on_main(lambda: best_so_far(folder))
    if math.isinf(loss):
        facts = {"step": trainer.state.global_step}
        save_state(trainer, folder / "final", facts)
    elif trainer.accelerator.is_main_process and (folder / "best").exists():
        shutil.rmtree(folder / "final", ignore_errors=True)
        (folder / "best").replace(folder / "final")
    return facts


if __name__ == "__main__":
    main()
